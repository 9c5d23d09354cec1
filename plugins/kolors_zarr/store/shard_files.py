"""Chunks of local shards: files mapped into memory, so that a chunk is copied once, straight to where it belongs."""

from __future__ import annotations

import mmap
import os
import resource
from functools import lru_cache, partial

from kolors_zarr.store.checksums import Bytes
from kolors_zarr.store.damage import ShardError, unreadable
from kolors_zarr.store.layout import ABSENT
from kolors_zarr.store.numbering import Wanted
from kolors_zarr.store.places import Folder
from kolors_zarr.store.shards import NO_CHUNK, NO_SHARD, ShardTable, require_size

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

    def chunks(self, column: str, wanted: Wanted, faults: dict[int, str]) -> list[tuple[int, Bytes]]:
        """Return position and bytes of chunks, as `Shards` says; but for texts, the bytes are the file's own."""
        found, mapped = list[tuple[int, Bytes]](), self._mapped
        for position, shard, row in wanted:
            try:
                data, index = mapped(column, shard)
            except ShardError as error:
                faults[position] = str(error)
                continue
            start = index[2 * row]
            if start == ABSENT:
                faults[position] = NO_CHUNK
            else:
                found.append((position, data[start : start + index[2 * row + 1]]))
        return found


def _mapped(folder: Folder, table: ShardTable, column: str, shard: int) -> tuple[mmap.mmap | Bytes, memoryview]:
    key, wanted, checksum = table.expected(column, shard)
    if not wanted:
        return b"", table.no_chunks
    try:
        with open(f"{folder.path}/{key}", "rb", buffering=0) as file:
            require_size(os.fstat(file.fileno()).st_size, wanted)
            data = mmap.mmap(file.fileno(), wanted, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise ShardError(NO_SHARD) from error
    except OSError as error:
        raise unreadable(folder, key, error) from error
    index = table.index(memoryview(data)[-table.index_bytes :], checksum)
    # A piece of a map is a copy, and one of a view another view: of a text, the copy costs less.
    return data if table.kind(column) == "string" else memoryview(data), index
