"""Which shard, and which row of it, a sample is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kolors_kernel.errors import DataError
from kolors_zarr.store.damage import REMEDY
from kolors_zarr.store.layout import shard_key
from kolors_zarr.store.manifest import Manifest

Numbers: TypeAlias = NDArray[np.int64]
Asked: TypeAlias = Sequence[int] | NDArray[np.integer[Any]]


class Numbering:
    """Counts samples and shards through the groups of a manifest; `counts` [shards] are the samples of each shard.

    `starts` [groups + 1] are the first sample of each group, and their number. Raises DataError, calling the store
    `where`, when counts and manifest disagree.
    """

    def __init__(self, manifest: Manifest, counts: NDArray[Any], *, where: str) -> None:
        self._manifest = manifest
        self.starts = _starts([group.samples for group in manifest.groups])
        self._shards = _starts([group.shards for group in manifest.groups])  # the first shard of each group
        self._firsts = _starts(counts)  # the first sample of each shard
        if (self._firsts[self._shards] != self.starts).any() or counts.max(initial=0) > manifest.shard_rows:
            raise DataError(f"{where}: the shards hold other numbers of samples than the manifest says; {REMEDY}")

    @property
    def most_bytes(self) -> int:
        """The memory it takes."""
        return self._firsts.nbytes

    def checked(self, asked: Asked) -> Numbers:
        """Return sample numbers as an array. Raises ValueError for one that the store does not have."""
        numbers = np.asarray(asked, np.int64)
        if numbers.size and (numbers.min() < 0 or numbers.max() >= self.starts[-1]):
            raise ValueError(
                f"samples {numbers.min()} to {numbers.max()} are asked for; there are 0 to {self.starts[-1] - 1}"
            )
        return numbers

    def groups(self, numbers: Numbers) -> list[int]:
        """Return the groups that samples are in, each once."""
        return sorted({*(self.starts.searchsorted(numbers, "right") - 1).tolist()})

    def are_in(self, group: int, numbers: Numbers) -> NDArray[np.bool_]:
        """Return which samples are in a group."""
        inside: NDArray[np.bool_] = (numbers >= self.starts[group]) & (numbers < self.starts[group + 1])
        return inside

    def locate(self, numbers: Numbers) -> tuple[Numbers, Numbers]:
        """Return the shards of samples, counted through the groups, and their rows in these."""
        shards = self._firsts.searchsorted(numbers, "right") - 1
        return shards, numbers - self._firsts[shards]

    def first_shard(self, group: int) -> int:
        """Return the number of a group's first shard."""
        return int(self._shards[group])

    def shard_key(self, column: str, shard: int) -> str:
        """Return the key of a column's shard."""
        number = int(self._shards.searchsorted(shard, "right")) - 1
        group = self._manifest.groups[number]
        axes = 1 + len(group.columns[column].shape)
        return shard_key(group.name, column, shard - self.first_shard(number), axes=axes)


def _starts(counts: Sequence[int] | NDArray[Any]) -> Numbers:
    starts = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    return starts
