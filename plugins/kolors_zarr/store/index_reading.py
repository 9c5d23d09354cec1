"""The index of a store as a reader uses it: columns whole, or some rows of them at bounded memory."""

from __future__ import annotations

import math
from functools import cached_property
from threading import Lock
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from kolors_kernel.errors import DataError
from kolors_zarr.store.checksums import CHECKSUM_BYTES, SEAL, crc32c
from kolors_zarr.store.damage import REMEDY, read_needed
from kolors_zarr.store.layout import INDEX_CHUNK, OBJECT, TAG, chunk_key, index_key
from kolors_zarr.store.manifest import Manifest
from kolors_zarr.store.places import Place
from kolors_zarr.store.requests import Requests

Array: TypeAlias = NDArray[Any]
MOST_BYTES = 256 * 2**20
"""What one column may keep in memory; the sizes of 64 M samples fit, and only what was read takes memory."""
_FORMS = {"size": ("uint16", (2,)), "crop": ("uint16", (4,)), "captions": ("uint16", ()), "count": ("uint32", ())}


class IndexColumns:
    """The columns of a manifest's index, opened as they are asked for. Safe for several threads."""

    def __init__(self, place: Place, manifest: Manifest, requests: Requests) -> None:
        self._place, self._manifest, self._requests = place, manifest, requests
        objects = [OBJECT + name for name in (manifest.groups[0].columns if manifest.groups else ())]
        tags = [TAG + name for name in manifest.tags]
        self._open = {name: self._column(name) for name in [*_FORMS, *tags, *objects]}

    def __getitem__(self, name: str) -> IndexColumn:
        if name not in self._open:
            raise ValueError(f"the index of {self._place.url} has no column '{name}'; it has {', '.join(self._open)}")
        return self._open[name]

    @property
    def most_bytes(self) -> int:
        """The memory that the columns may come to take, when rows of all of them are read."""
        return sum(column.most_bytes for column in self._open.values())

    def _column(self, name: str) -> IndexColumn:
        of_shards = name == "count" or name.startswith(OBJECT)
        dtype, tail = ("uint32", (3,)) if name.startswith(OBJECT) else _FORMS.get(name, ("uint16", ()))
        length = self._manifest.shards if of_shards else self._manifest.samples
        key = index_key(self._manifest.edition, name)
        return IndexColumn(self._place, key, self._requests, dtype=dtype, shape=(length, *tail))


class IndexColumn:
    """One column of the index. Raises DataError when a file of it that is needed is missing or damaged."""

    def __init__(self, place: Place, key: str, requests: Requests, *, dtype: str, shape: tuple[int, ...]) -> None:
        self._place, self._key, self._requests = place, key, requests
        self._dtype, self._shape = np.dtype(dtype).newbyteorder("<"), shape
        self._chunk = (min(shape[0], INDEX_CHUNK), *shape[1:])
        self._chunk_bytes = self._dtype.itemsize * math.prod(self._chunk)
        self._slot = np.full(-(-shape[0] // INDEX_CHUNK), -1)  # of each chunk: where it is in memory
        self._room = min(len(self._slot), max(1, MOST_BYTES // max(1, self._chunk_bytes)))
        self._used = 0
        self._lock = Lock()

    @property
    def most_bytes(self) -> int:
        """The memory that reading rows may come to take."""
        return self._room * self._chunk_bytes

    def whole(self) -> Array:
        """Return all rows, read anew; the array is the caller's."""
        rows = np.empty(self._shape, self._dtype)
        for number, chunk in enumerate(self._requests.answers(self._read, range(len(self._slot)))):
            start = number * INDEX_CHUNK
            rows[start : start + INDEX_CHUNK] = chunk[: len(rows) - start]
        return rows

    def rows(self, numbers: NDArray[np.int64]) -> Array:
        """Return some rows. Only the chunks they are in are read, and stay in memory while there is room."""
        if self._used == len(self._slot):
            return self._all[numbers]
        chunks, places = np.divmod(numbers, INDEX_CHUNK)
        with self._lock:
            slots = self._slot[chunks]
            if slots.size == 0 or slots.min() >= 0:
                return cast(Array, self._kept[slots, places])
            found, wanted = np.empty((len(numbers), *self._shape[1:]), self._dtype), np.unique(chunks)
            for start in range(0, len(wanted), self._room):
                some = wanted[start : start + self._room]
                self._keep(some)
                here = np.isin(chunks, some)
                found[here] = self._kept[self._slot[chunks[here]], places[here]]
            return found

    @cached_property
    def _all(self) -> Array:
        return self._kept.reshape(-1, *self._shape[1:])

    @cached_property
    def _kept(self) -> Array:
        return np.empty((self._room, *self._chunk), self._dtype)  # the system gives memory as it is filled

    def _keep(self, chunks: NDArray[np.int64]) -> None:
        new = chunks[self._slot[chunks] < 0]
        if self._used + len(new) > self._room:
            self._slot[:], self._used, new = -1, 0, chunks
        for chunk, rows in zip(new.tolist(), self._requests.answers(self._read, new.tolist()), strict=True):
            # Where all chunks have room each has its own, so that one look finds a row when all are there.
            slot = chunk if self._room == len(self._slot) else self._used
            self._kept[slot], self._slot[chunk] = rows, slot
            self._used += 1

    def _read(self, chunk: int) -> Array:
        key = chunk_key(self._key, chunk, axes=len(self._shape))
        return read_chunk(self._place, key, self._chunk_bytes).view(self._dtype).reshape(self._chunk)


def read_chunk(place: Place, key: str, size: int) -> NDArray[np.uint8]:
    """Return the `size` bytes of a chunk of the index. Raises DataError when it is missing or damaged."""
    data = read_needed(place, key)
    if len(data) != size + CHECKSUM_BYTES or crc32c(data) != SEAL:
        raise DataError(f"{place.url}/{key} does not match its checksum; {REMEDY}")
    return np.frombuffer(data, np.uint8, size)
