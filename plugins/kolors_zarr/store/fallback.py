"""Columns that the direct reader does not know, read through zarr-python: right for any codec, and slow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
import zarr
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype

from kolors_kernel.errors import DataError
from kolors_zarr.store.checksums import Bytes
from kolors_zarr.store.damage import REMEDY, ShardError, unreadable
from kolors_zarr.store.numbering import Wanted
from kolors_zarr.store.places import Place
from kolors_zarr.store.shards import NO_CHUNK

Buffers: TypeAlias = list[Buffer | None]
_UNREADABLE = (ValueError, RuntimeError, OSError, KeyError, IndexError, TypeError)
"""What zarr raises by kind of damage: checksum, decompression, file, metadata."""


class ZarrReader:
    """Reads a column of one group as zarr-python does. Damage is found only as far as the column's codecs look."""

    def __init__(self, place: Place, key: str, *, first_shard: int, shard_rows: int) -> None:
        self._first_shard, self._shard_rows = first_shard, shard_rows
        try:
            self._array = zarr.open_array(ReadOnly(place, present=f"{key}/c/"), path=key, mode="r", zarr_format=3)
        except _UNREADABLE as error:
            raise DataError(f"{place.url}/{key}/zarr.json cannot be used by zarr: {error}; {REMEDY}") from error

    def values(self, wanted: Wanted, faults: dict[int, str]) -> Iterator[tuple[int, Bytes]]:
        """Yield position and value of rows."""
        for position, shard, row in wanted:
            at = (shard - self._first_shard) * self._shard_rows + row
            try:
                value: Any = self._array[at : at + 1][0]  # type: ignore[index]
            except (*_UNREADABLE, ShardError) as error:
                faults[position] = f"row {at} of the array cannot be read: {error}"
                continue
            data = value.encode() if isinstance(value, str) else value
            if isinstance(data, bytes) and not data:
                faults[position] = NO_CHUNK
            else:
                yield position, np.frombuffer(data, np.uint8).data


class ReadOnly(Store):
    """A place as zarr's store. What zarr would fill with zeros, objects below `present` that are missing, raises."""

    def __init__(self, place: Place, *, present: str) -> None:
        super().__init__(read_only=True)
        self._place, self._present = place, present

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ReadOnly) and other._place is self._place

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return an object or a part of it. Raises ShardError for a chunk or shard that is missing."""
        try:
            data = await asyncio.to_thread(self._read, key, byte_range)
        except FileNotFoundError as error:
            if key.startswith(self._present):
                raise ShardError(f"{key} is missing") from error
            return None
        except OSError as error:
            raise unreadable(self._place, key, error) from error
        return prototype.buffer.from_bytes(data)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> Buffers:
        """Return parts of objects."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        """Tell whether there is an object."""
        try:
            return await asyncio.to_thread(self._place.size, key) >= 0
        except FileNotFoundError:
            return False

    @property
    def supports_writes(self) -> bool:
        """No."""
        return False

    @property
    def supports_deletes(self) -> bool:
        """No."""
        return False

    @property
    def supports_listing(self) -> bool:
        """No: arrays are opened by name."""
        return False

    async def set(self, key: str, value: Buffer) -> None:
        """Refuse."""
        raise PermissionError(f"{self._place.url} is open for reading")

    async def delete(self, key: str) -> None:
        """Refuse."""
        raise PermissionError(f"{self._place.url} is open for reading")

    def list(self) -> AsyncIterator[str]:
        """Refuse."""
        raise PermissionError(f"{self._place.url} is not listed")

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Refuse."""
        raise PermissionError(f"{self._place.url} is not listed")

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Refuse."""
        raise PermissionError(f"{self._place.url} is not listed")

    def _read(self, key: str, byte_range: ByteRequest | None) -> bytes:
        if byte_range is None:
            return self._place.read(key)
        if isinstance(byte_range, RangeByteRequest):
            start, stop = byte_range.start, byte_range.end
        else:
            size = self._place.size(key)
            start = byte_range.offset if isinstance(byte_range, OffsetByteRequest) else max(0, size - byte_range.suffix)
            stop = size
        return self._place.read_ranges(key, [(start, stop - start)])[0]
