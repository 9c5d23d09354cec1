"""How the values of a column are read: from the chunks of its shards, as long as it is stored as it was written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from kolors_zarr.store.checksums import CHECKSUM_BYTES, SEAL, Bytes, crc32c
from kolors_zarr.store.manifest import Column
from kolors_zarr.store.numbering import Wanted
from kolors_zarr.store.shard import ELEMENT_BYTES
from kolors_zarr.store.shards import Shards


class ColumnReader(Protocol):
    """Reads a column of one group."""

    def values(self, wanted: Wanted, faults: dict[int, str]) -> Iterable[tuple[int, Bytes]]:
        """Return position and value, in any order: the bytes of an array, of a text, or simply bytes; checked.

        Why one cannot be had goes into `faults` by its position.
        """


class ChunkReader:
    """Reads the values of a column from chunks of one row, each with its checksum."""

    def __init__(self, shards: Shards, name: str, column: Column) -> None:
        self._shards, self._name = shards, name
        self._head, self._bytes = ELEMENT_BYTES, None
        if column.kind == "array":
            self._head, self._bytes = 0, math.prod(column.shape) * np.dtype(column.dtype).itemsize + CHECKSUM_BYTES

    def values(self, wanted: Wanted, faults: dict[int, str]) -> Iterator[tuple[int, Bytes]]:
        """Yield what is in the chunks that match their checksums."""
        head, size = self._head, self._bytes
        for position, chunk in self._shards.chunks(self._name, wanted, faults):
            if crc32c(chunk) != SEAL:
                faults[position] = "the chunk does not match its checksum"
            elif size is not None and len(chunk) != size:
                faults[position] = f"the chunk has {len(chunk)} bytes instead of {size}"
            else:
                yield position, chunk[head:-CHECKSUM_BYTES]
