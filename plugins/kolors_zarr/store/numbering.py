"""Which shard, and which row of it, a sample is."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kolors_kernel.errors import DataError
from kolors_zarr.store.damage import REMEDY
from kolors_zarr.store.layout import shard_key
from kolors_zarr.store.manifest import Manifest

Numbers: TypeAlias = NDArray[np.int64]
Wanted: TypeAlias = Sequence[tuple[int, int, int]]
"""Rows of shards: in what position the caller wants each, the shard, and the row in it."""


@dataclass(frozen=True)
class Located:
    """Samples that are asked for, by their numbers, and where they are: what is wanted, and of which group."""

    numbers: Numbers
    wanted: Wanted
    by_group: Mapping[int, Wanted]

    def __len__(self) -> int:
        return len(self.numbers)

    def only(self, positions: Collection[int]) -> Located:
        """Return the same samples with nothing wanted but of those at some positions; the others are not read."""
        kept = {*positions}
        by_group = {group: [each for each in wanted if each[0] in kept] for group, wanted in self.by_group.items()}
        return Located(self.numbers, [each for wanted in by_group.values() for each in wanted], by_group)


Asked: TypeAlias = Sequence[int] | NDArray[np.integer[Any]] | Located
"""Numbers of samples; who reads several columns of the same ones locates them once."""


class Numbering:
    """Counts samples and shards through the groups of a manifest; `counts` [shards] are the samples of each shard.

    `starts` [groups + 1] are the first sample of each group, and their number. Raises DataError, calling the store
    `where`, when counts and manifest disagree.
    """

    def __init__(self, manifest: Manifest, counts: NDArray[Any], *, where: str) -> None:
        self.manifest = manifest
        self.starts = _starts([group.samples for group in manifest.groups])
        self._shards = _starts([group.shards for group in manifest.groups])  # the first shard of each group
        self._firsts = _starts(counts)  # the first sample of each shard
        self._bounds = self.starts.tolist()
        if (self._firsts[self._shards] != self.starts).any() or counts.max(initial=0) > manifest.shard_rows:
            raise DataError(f"{where}: the shards hold other numbers of samples than the manifest says; {REMEDY}")

    @property
    def most_bytes(self) -> int:
        """The memory it takes."""
        return self._firsts.nbytes

    def locate(self, asked: Asked) -> Located:
        """Return where samples are; shards are counted through the groups.

        Raises ValueError for one that the store does not have.
        """
        if isinstance(asked, Located):
            return asked
        numbers = np.asarray(asked, np.int64)
        if not numbers.size:
            return Located(numbers, [], {})
        low, high = int(numbers.min()), int(numbers.max())
        if low < 0 or high >= self._bounds[-1]:
            raise ValueError(f"samples {low} to {high} are asked for; there are 0 to {self._bounds[-1] - 1}")
        shards = self._firsts.searchsorted(numbers, "right") - 1
        wanted = list(zip(range(len(numbers)), shards.tolist(), (numbers - self._firsts[shards]).tolist(), strict=True))
        group = bisect_right(self._bounds, low) - 1
        if high < self._bounds[group + 1]:
            return Located(numbers, wanted, {group: wanted})
        groups: dict[int, list[tuple[int, int, int]]] = {}
        for group, each in zip((self.starts.searchsorted(numbers, "right") - 1).tolist(), wanted, strict=True):
            groups.setdefault(group, []).append(each)
        return Located(numbers, wanted, groups)

    def first_shard(self, group: int) -> int:
        """Return the number of a group's first shard."""
        return int(self._shards[group])

    def shard_key(self, column: str, shard: int) -> str:
        """Return the key of a column's shard."""
        number = int(self._shards.searchsorted(shard, "right")) - 1
        group = self.manifest.groups[number]
        axes = 1 + len(group.columns[column].shape)
        return shard_key(group.name, column, shard - self.first_shard(number), axes=axes)


def _starts(counts: Sequence[int] | NDArray[Any]) -> Numbers:
    starts = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    return starts
