"""What the shards of a store must be, and how chunks are asked of them wherever they lie."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np

from kolors_zarr.store.checksums import CHECKSUM_BYTES, SEAL, Bytes, crc32c
from kolors_zarr.store.damage import ShardError
from kolors_zarr.store.index_reading import IndexColumns
from kolors_zarr.store.layout import ABSENT, OBJECT
from kolors_zarr.store.manifest import ColumnKind
from kolors_zarr.store.numbering import Numbering, Wanted
from kolors_zarr.store.shard import index_bytes

NO_CHUNK = "the chunk is not there"
NO_SHARD = "the shard is missing"


class Shards(Protocol):
    """The shards of a store."""

    most_bytes: int
    """The memory that knowing them may come to take."""

    def chunks(self, column: str, wanted: Wanted, faults: dict[int, str]) -> Iterable[tuple[int, Bytes]]:
        """Return position and bytes of chunks, checksums included and not yet compared, in any order.

        Why one cannot be had goes into `faults` by its position. Raises DataError when an object may not be read.
        """


class ShardTable:
    """Knows what each shard must be."""

    def __init__(self, numbering: Numbering, index: IndexColumns, *, shard_rows: int) -> None:
        self._numbering, self._index = numbering, index
        self.index_bytes = index_bytes(shard_rows)
        self.no_chunks = np.full(2 * shard_rows, ABSENT, np.uint64).data
        """The index of a shard that was never written, as no sample has the column."""

    def expected(self, column: str, shard: int) -> tuple[str, int, int]:
        """Return a shard's key, its bytes (0: it was never written) and the CRC-32C of its index."""
        low, high, checksum = self._index[OBJECT + column].rows(np.array([shard]))[0].tolist()
        return self.key(column, shard), low + (high << 32), checksum

    def kind(self, column: str) -> ColumnKind:
        """Return what the values of a column are."""
        return self._numbering.manifest.groups[0].columns[column].kind

    def key(self, column: str, shard: int) -> str:
        """Return a shard's key."""
        return self._numbering.shard_key(column, shard)

    def index(self, tail: bytes | memoryview, checksum: int) -> memoryview:
        """Return offset and length of chunk i at 2 i and 2 i + 1, from the last `index_bytes` of a shard, not copied.

        Raises ShardError unless they match the checksum they end with, and that is the one the store's index names.
        """
        pairs = tail[:-CHECKSUM_BYTES]
        if crc32c(tail) != SEAL or crc32c(pairs) != checksum:
            raise ShardError("the index of the shard does not match its checksum")
        return memoryview(pairs).cast("Q")


def require_size(found: int, wanted: int) -> None:
    """Raise ShardError unless a shard has the bytes it was written with."""
    if found != wanted:
        raise ShardError(f"the shard has {found} bytes instead of {wanted}")
