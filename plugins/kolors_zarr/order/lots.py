"""Lots: equal runs of a bucket's samples, of all buckets in one shuffled order.

Each bucket has a stream of samples: position e * n + i of it is sample i of the bucket's order in epoch e, where n is
how many samples it has. A lot is a run of one stream: a global batch in the full part of an epoch, the batch of one
rank in its tail. Lots are drawn in the order of a keyed permutation, but a bucket's lots come in the order of its
stream: what has been drawn of a bucket is one run of it, so another division can go on from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from kolors_zarr.order.permutation import Permutation, key_of

Integers = NDArray[np.int64]
_AT_ONCE = 1 << 13
"""How many lots are looked at together: enough to make numpy's calls cheap, few enough for the cache."""


@dataclass(frozen=True)
class Lots:
    """The streams of the buckets from `first` [buckets] to `end` [buckets], cut into lots of `size` samples.

    The last lot of a bucket holds what is left and is not empty.
    """

    first: Integers
    end: Integers
    size: int
    key: bytes

    @cached_property
    def _last(self) -> Integers:
        """How many lots the buckets up to each one have together, [buckets]."""
        return np.cumsum(-(-(self.end - self.first) // self.size))

    @cached_property
    def count(self) -> int:
        """The number of lots."""
        return int(self._last[-1]) if len(self._last) else 0

    @cached_property
    def _order(self) -> Permutation:
        return Permutation(self.count, self.key)

    def blocks(self, start: int, most: int) -> Iterator[tuple[Integers, Integers]]:
        """Yield the lots from `start` on, at most `most` at a time: their buckets [K] and numbers in these [K]."""
        drawn = self._drawn(min(start, self.count))
        for begin in range(start, self.count, most):
            buckets = self._buckets(begin, min(begin + most, self.count))
            yield buckets, drawn[buckets] + _earlier(buckets)
            drawn += np.bincount(buckets, minlength=len(drawn))

    def taken(self, count: int) -> Integers:
        """Return where the buckets' streams stand when the first `count` lots have been drawn, [buckets]."""
        taken: Integers = np.minimum(self.first + self._drawn(count) * self.size, self.end)
        return taken

    def _drawn(self, count: int) -> Integers:
        """How many of the first `count` lots each bucket has, [buckets]."""
        drawn = np.zeros(len(self.first), np.int64)
        for begin in range(0, count, _AT_ONCE):
            drawn += np.bincount(self._buckets(begin, min(begin + _AT_ONCE, count)), minlength=len(drawn))
        return drawn

    def _buckets(self, start: int, stop: int) -> Integers:
        """The buckets of the lots `start` to `stop`, [stop - start]."""
        buckets: Integers = np.searchsorted(self._last, self._order.at(np.arange(start, stop)), side="right")
        return buckets


@dataclass(frozen=True)
class Rest:
    """What an epoch still has to give, from `first` to `end` [buckets], divided for one batch and world.

    First the full steps: every rank gets its share of a global batch of one bucket. Then, if `padded`, the tail: what
    is left of each bucket in batches of single ranks.
    """

    first: Integers
    end: Integers
    batch: int
    world: int
    padded: bool
    seed: int
    epoch: int

    @cached_property
    def full(self) -> Lots:
        """The global batches."""
        size = self.batch * self.world
        return Lots(self.first, whole(self.first, self.end, size), size, key_of(self.seed, self.epoch, "full"))

    @cached_property
    def tail(self) -> Lots:
        """The batches of single ranks that follow."""
        end = self.end if self.padded else self.full.end
        return Lots(self.full.end, end, self.batch, key_of(self.seed, self.epoch, "tail"))

    @property
    def steps(self) -> int:
        """The number of steps on every rank."""
        return self.full.count - (-self.tail.count // self.world)

    def taken(self, steps: int) -> Integers:
        """Return where the buckets' streams stand after `steps` steps, [buckets]."""
        if steps <= self.full.count:
            return self.full.taken(steps)
        return self.tail.taken(min((steps - self.full.count) * self.world, self.tail.count))

    def goes_on_as(self, batch: int, world: int, *, after: int) -> bool:
        """Tell whether this division, left after some steps, goes on unchanged with another batch and world."""
        same = batch * world == self.batch * self.world
        return same and (after <= self.full.count or batch == self.batch)


def whole(first: Integers, end: Integers, size: int) -> Integers:
    """Return where whole lots of `size` from `first` on end, at most `end`, [buckets]."""
    return first + (end - first) // size * size


def _earlier(values: Integers) -> Integers:
    """Return how many equal values stand before each one, [K]."""
    order = np.argsort(values, kind="stable")
    grouped = values[order]
    earlier = np.empty_like(order)
    earlier[order] = np.arange(len(order)) - np.searchsorted(grouped, grouped)
    return earlier
