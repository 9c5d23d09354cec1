"""Which bucket a picture goes into: the one whose aspect is nearest on a log scale, so that least is cut away.

Scaling a picture to cover a bucket and cutting off what sticks out keeps min(a/b, b/a) of it, a and b being the two
aspects. That is exp(-|ln a - ln b|): the nearest logarithm is the smallest loss, always.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

_TAKEN, _TOO_SMALL, _TOO_MUCH_CUT, _NO_OWN_SIZE = range(4)


class Assigned(NamedTuple):
    """What became of each of n pictures.

    sizes [n, 2] int32: height and width of its bucket, 0 and 0 if it is refused. reasons [n] uint8: 0 if it has a
    bucket, else what `Bucketing.sentence` puts into words.
    """

    sizes: NDArray[np.int32]
    reasons: NDArray[np.uint8]


@dataclass(frozen=True)
class Bucketing:
    """Puts pictures of any size into buckets, or says why not.

    A picture with a side below `min_side` is refused, and one of which the crop would cut away more than the share
    `max_loss`. With `no_upscale`, one that would have to be enlarged gets a size of its own instead: its sides, or
    those of its copy with the area of the largest bucket if that is smaller, cut down to multiples of `step`. It is
    refused if one falls below the shortest side in `sizes`.
    """

    sizes: tuple[tuple[int, int], ...]
    min_side: int = 1
    max_loss: float = 1.0
    no_upscale: bool = False
    step: int = 64

    def assign(self, heights: ArrayLike, widths: ArrayLike) -> Assigned:
        """Return the bucket or the reason for each picture of these heights and widths [n], in pixels."""
        pictures = np.stack([np.asarray(heights, np.int64), np.asarray(widths, np.int64)], axis=-1)  # [n, 2]
        large_enough = pictures.min(axis=-1) >= self.min_side
        known = np.where(large_enough[:, None], pictures, 1)  # a side of 0 has no aspect
        buckets = np.asarray(self.sizes)[nearest(*known.T, sizes=self.sizes)]
        reasons = np.full(len(pictures), _TAKEN, np.uint8)
        if self.no_upscale:
            small = (buckets > pictures).any(axis=-1)
            buckets[small] = self._own_sizes(known[small])
            reasons[(buckets < np.min(self.sizes)).any(axis=-1)] = _NO_OWN_SIZE
        reasons[(reasons == _TAKEN) & (lost(known, buckets) > self.max_loss)] = _TOO_MUCH_CUT
        reasons[~large_enough] = _TOO_SMALL
        buckets[reasons != _TAKEN] = 0
        return Assigned(buckets.astype(np.int32), reasons)

    def sentence(self, reason: int, size: tuple[int, int]) -> str:
        """Return why a picture of this (height, width) was refused, for a code in `Assigned.reasons`."""
        shortest = min(map(min, self.sizes))
        why = {
            _TOO_SMALL: f"and pictures with a side below {self.min_side} are refused (min_side)",
            _TOO_MUCH_CUT: f"and its bucket would cut away more than {self.max_loss:.1%} of it (max_loss)",
            _NO_OWN_SIZE: f"too small for its bucket, and cut down to multiples of {self.step} a side would be below "
            f"{shortest} (no_upscale)",
        }
        return f"it is {size[0]} x {size[1]} pixels, {why[reason]}"

    def _own_sizes(self, pictures: NDArray[np.int64]) -> NDArray[np.int64]:
        largest = max(height * width for height, width in self.sizes)
        shrunk = np.sqrt(largest * pictures / pictures[:, ::-1])  # the same aspect at the largest area
        return np.minimum(pictures, shrunk).astype(np.int64) // self.step * self.step


def nearest(heights: ArrayLike, widths: ArrayLike, *, sizes: tuple[tuple[int, int], ...]) -> NDArray[np.intp]:
    """Return for each picture [n] the index of the size whose crop keeps most of it; of equals, the first.

    Only correctly rounded arithmetic decides, so that every machine agrees. Sides are positive, below 2^26.
    """
    first = dict[Fraction, int]()
    for index, (height, width) in enumerate(sizes):
        first.setdefault(Fraction(height, width), index)
    aspects = sorted(first)
    order = np.array([first[aspect] for aspect in aspects])
    # Halfway between two logarithms is the root of the aspects' product: compare squares, and no root is taken.
    limits = np.array([float(lower * upper) for lower, upper in pairwise(aspects)])
    limits = np.where(order[1:] < order[:-1], np.nextafter(limits, 0), limits)  # a tie then goes to the upper one
    squares = np.square(heights, dtype=np.float64) / np.square(widths, dtype=np.float64)
    return order[np.searchsorted(limits, squares)]


def lost(pictures: NDArray[np.int64], buckets: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the share of each picture that the crop to its bucket cuts away, [n] for sizes [n, 2]."""
    crossed = pictures * buckets[:, ::-1]
    share: NDArray[np.float64] = 1 - crossed.min(axis=-1) / np.maximum(crossed.max(axis=-1), 1)
    return share
