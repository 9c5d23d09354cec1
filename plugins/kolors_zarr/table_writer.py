"""Writing one table of a store: columns of arrays or of bytes, with a checksum for every value."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any, TypeAlias
from zlib import crc32

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec

from kolors_zarr.layout import CHECKSUMS, CHUNK_BYTES, OFFSETS, SHARD_BYTES, ColumnKind, is_compressed

Array: TypeAlias = NDArray[Any]
Value: TypeAlias = bytes | Array


class _Column:
    """Gathers the bytes of one array until a shard is full, so that each shard is written once and whole."""

    def __init__(self, group: zarr.Group, name: str, dtype: np.dtype[Any], row_shape: tuple[int, ...]) -> None:
        self.group, self.name, self.dtype, self.row_shape = group, name, dtype, row_shape
        self.row_bytes = dtype.itemsize * int(np.prod(row_shape, dtype=np.int64))
        self.chunk_rows = max(1, CHUNK_BYTES // max(1, self.row_bytes))
        self.shard_rows = self.chunk_rows * max(1, SHARD_BYTES // (self.chunk_rows * max(1, self.row_bytes)))
        self.rows = 0
        self.pending = bytearray()
        self.array: zarr.Array[Any] | None = None

    def append(self, data: bytes) -> None:
        self.pending += data
        full = self.shard_rows * self.row_bytes
        while len(self.pending) >= full > 0:
            self._write(bytes(self.pending[:full]))
            del self.pending[:full]

    def close(self) -> None:
        if self.pending:
            self._write(bytes(self.pending))
            self.pending.clear()

    def _write(self, data: bytes) -> None:
        values = np.frombuffer(data, self.dtype).reshape(-1, *self.row_shape)
        if self.array is None:
            self.array = self._create(len(values))
        self.array.resize((self.rows + len(values), *self.row_shape))
        self.array[self.rows : self.rows + len(values)] = values
        self.rows += len(values)

    def _create(self, rows: int) -> zarr.Array[Any]:
        chunk = min(self.chunk_rows, rows)
        shard = min(self.shard_rows, -(-rows // chunk) * chunk)
        compressors = [ZstdCodec(level=9), Crc32cCodec()] if is_compressed(self.name) else [Crc32cCodec()]
        return self.group.create_array(
            self.name,
            shape=(rows, *self.row_shape),
            dtype=self.dtype,
            chunks=(chunk, *self.row_shape),
            shards=(shard, *self.row_shape),
            compressors=compressors,
            fill_value=0,
            config={"write_empty_chunks": True},  # a chunk of zeros must be there, or it would look lost
        )


class TableWriter:
    """Appends rows to a table. Offsets and checksums stay in memory until `close`: 12 bytes a value."""

    def __init__(self, group: zarr.Group) -> None:
        self.group = group
        self.count = 0
        self.columns: dict[str, _Column] = {}
        self.kinds: dict[str, ColumnKind] = {}
        self.checksums: dict[str, array[int]] = {}
        self.ends: dict[str, array[int]] = {}

    def append(self, row: Mapping[str, Value]) -> int:
        """Add a row and return its number. A column of bytes that a row lacks is empty there.

        Raises ValueError when an array has another shape or dtype than in the rows before, or is absent.
        """
        for name, value in row.items():
            if name not in self.kinds:
                self._add_column(name, value)
        for name, kind in self.kinds.items():
            if kind == "bytes":
                data = row.get(name, b"")
                assert isinstance(data, bytes)
                ends = self.ends[name]
                ends.append((ends[-1] if ends else 0) + len(data))
            else:
                data = self._bytes_of_array(name, row.get(name))
            self.columns[name].append(data)
            self.checksums[name].append(crc32(data))
        self.count += 1
        return self.count - 1

    def close(self) -> None:
        """Write what is pending, the index and the attributes."""
        for column in self.columns.values():
            column.close()
        self._write_index(CHECKSUMS, [np.asarray(c, np.uint32) for c in self.checksums.values()])
        if self.ends:
            self._write_index(OFFSETS, [np.concatenate([[0], e]).astype(np.uint64) for e in self.ends.values()])
        self.group.attrs.update({"count": self.count, "columns": dict(self.kinds)})

    def _add_column(self, name: str, value: Value) -> None:
        if isinstance(value, bytes):
            self.columns[name] = _Column(self.group, name, np.dtype(np.uint8), ())
            self.kinds[name] = "bytes"
            self.ends[name] = array("Q", bytes(8 * self.count))  # empty in the rows before
            self.checksums[name] = array("I", [crc32(b"")]) * self.count
        elif self.count:
            raise ValueError(f"row {self.count} has '{name}', which the rows before have not")
        else:
            self.columns[name] = _Column(self.group, name, value.dtype, value.shape)
            self.kinds[name] = "array"
            self.checksums[name] = array("I")

    def _bytes_of_array(self, name: str, value: Value | None) -> bytes:
        column = self.columns[name]
        if not isinstance(value, np.ndarray):
            raise ValueError(f"row {self.count} has no '{name}', which the rows before have")
        if value.shape != column.row_shape or value.dtype != column.dtype:
            raise ValueError(
                f"row {self.count} has '{name}' as {value.dtype} {list(value.shape)}, the rows before as "
                f"{column.dtype} {list(column.row_shape)}"
            )
        return value.tobytes()

    def _write_index(self, name: str, columns: list[Array]) -> None:
        values = np.stack(columns, axis=1)
        column = _Column(self.group, name, values.dtype, values.shape[1:])
        column.append(values.tobytes())
        column.close()
