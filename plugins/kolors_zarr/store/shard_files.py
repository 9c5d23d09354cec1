"""Chunks of local shards: files mapped into memory, so that a chunk is copied once, straight to where it belongs."""

from __future__ import annotations

import mmap
import os
import resource
from collections.abc import Iterator
from functools import lru_cache, partial

import numpy as np

from kolors_zarr.store.checksums import Bytes
from kolors_zarr.store.damage import ShardError, unreadable
from kolors_zarr.store.layout import ABSENT
from kolors_zarr.store.places import Folder
from kolors_zarr.store.shards import NO_CHUNK, NO_SHARD, ShardTable, Wanted, require_size

_MOST_FILES = 16_384
"""A quarter of the mappings that Linux lets a process have."""


class ShardFiles:
    """The shards of a store in a folder. Safe for several threads.

    A mapping holds a file descriptor, so no more than a quarter of those that the process may have are mapped at a
    time: the last used, and one that is mapped anew is checked anew. A shard must not be cut short while it is read:
    the system ends a process that looks at a mapping beyond the end of its file.
    """

    most_bytes = 0  # data and indices are pages of the files

    def __init__(self, folder: Folder, table: ShardTable) -> None:
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        room = _MOST_FILES if allowed == resource.RLIM_INFINITY else min(allowed // 4, _MOST_FILES)
        self._mapped = lru_cache(room)(partial(_mapped, folder, table))

    def chunks(self, column: str, wanted: Wanted, faults: dict[int, str]) -> Iterator[tuple[int, Bytes]]:
        """Yield position and bytes of chunks, as `Shards` says; the bytes are the file's own."""
        mapped = self._mapped
        for position, shard, row in zip(*(each.tolist() for each in wanted), strict=True):
            try:
                data, index = mapped(column, shard)
            except ShardError as error:
                faults[position] = str(error)
                continue
            start = index[2 * row]
            if start == ABSENT:
                faults[position] = NO_CHUNK
            else:
                yield position, data[start : start + index[2 * row + 1]]


def _mapped(folder: Folder, table: ShardTable, column: str, shard: int) -> tuple[Bytes, memoryview]:
    key, wanted, checksum = table.expected(column, shard)
    if not wanted:
        return np.empty(0, np.uint8), table.no_chunks
    try:
        with open(f"{folder.path}/{key}", "rb", buffering=0) as file:
            require_size(os.fstat(file.fileno()).st_size, wanted)
            data = np.frombuffer(mmap.mmap(file.fileno(), wanted, access=mmap.ACCESS_READ), np.uint8)
    except FileNotFoundError as error:
        raise ShardError(NO_SHARD) from error
    except OSError as error:
        raise unreadable(folder, key, error) from error
    return data, table.index(data[-table.index_bytes :], checksum)
