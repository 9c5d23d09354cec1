"""Reading one table of a store, and finding what is lost or damaged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast
from zlib import crc32

import numpy as np
import zarr

from kolors_kernel.errors import DataError
from kolors_zarr.layout import CHECKSUMS, OFFSETS, ColumnKind
from kolors_zarr.table_writer import Array, Value

UNREADABLE = (ValueError, RuntimeError, OSError, KeyError, IndexError, TypeError)
"""What zarr raises, by kind of damage: checksum, decompression, file, metadata."""
SMALL_BYTES = 256 * 1024 * 1024
"""A column up to this size is read at once and kept: finding one sample takes zarr longer than reading a megabyte."""


class Table:
    """Reads rows of a table and checks every value against its checksum.

    `label` turns a row number into what an error calls it. Raises DataError when the table's index is missing or
    cannot be read; `require_files` looks for the rest.
    """

    def __init__(self, group: zarr.Group, folder: Path) -> None:
        self.group, self.folder = group, folder
        self.label: Callable[[int], str] = "row {}".format
        try:
            self.count = int(cast(int, group.attrs["count"]))
            self.kinds = cast(dict[str, ColumnKind], dict(cast(Mapping[str, Any], group.attrs["columns"])))
        except UNREADABLE as error:
            raise DataError(f"{folder}/zarr.json is damaged: {error!r}; restore or rebuild the store") from error
        self.ragged = [name for name, kind in self.kinds.items() if kind == "bytes"]
        self.arrays = {name: self._open(name) for name in self.kinds}
        self.loaded: dict[str, zarr.Array[Any] | Array] = {}
        self.checksums = self._index(CHECKSUMS, self.count)
        self.offsets = self._index(OFFSETS, self.count + 1).astype(np.int64) if self.ragged else None

    def __contains__(self, column: str) -> bool:
        return column in self.kinds

    def row_shape(self, column: str) -> tuple[int, ...]:
        """Return the shape of one value of a column of arrays."""
        array = self.arrays[column]
        assert array is not None
        return tuple(array.shape[1:])

    def read_arrays(self, column: str, rows: Sequence[int]) -> Array:
        """Return these rows of a column of arrays, [len(rows), ...]. Raises DataError naming the damaged ones."""
        values = self._read(column, rows)
        return np.stack([np.asarray(values[row]) for row in rows])

    def read_bytes(self, column: str, rows: Sequence[int]) -> list[bytes]:
        """Return these rows of a column of bytes. Raises DataError naming the damaged ones."""
        values = self._read(column, rows)
        return [cast(bytes, values[row]) for row in rows]

    def _read(self, column: str, rows: Sequence[int]) -> dict[int, Value]:
        values: dict[int, Value] = {}
        damaged: dict[int, str] = {}
        for start, stop in _runs(rows):
            try:
                values.update(zip(range(start, stop), self._slice(column, start, stop), strict=True))
            except UNREADABLE:
                for row in range(start, stop):  # one bad chunk must not accuse the good rows beside it
                    try:
                        values[row] = self._slice(column, row, row + 1)[0]
                    except UNREADABLE as error:
                        damaged[row] = str(error) or repr(error)
        place = list(self.kinds).index(column)
        for row, value in values.items():
            if crc32(value if isinstance(value, bytes) else value.tobytes()) != self.checksums[row, place]:
                damaged[row] = "it does not match its checksum"
        if damaged:
            self._refuse(column, damaged)
        return values

    def _slice(self, column: str, start: int, stop: int) -> list[Value]:
        if self.kinds[column] == "array":
            return list(np.ascontiguousarray(self._load(column)[start:stop]))
        assert self.offsets is not None
        ends = self.offsets[start : stop + 1, self.ragged.index(column)]
        first, last = int(ends[0]), int(ends[-1])
        if self.arrays[column] is None or last == first:
            return [b""] * (stop - start)
        data = np.asarray(self._load(column)[first:last]).tobytes()
        return [data[a - first : b - first] for a, b in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)]

    def _load(self, column: str) -> zarr.Array[Any] | Array:
        """Return a column to slice: in memory if it is small and whole, else where it lies."""
        if column not in self.loaded:
            array = self.arrays[column]
            assert array is not None
            self.loaded[column] = array
            if array.nbytes <= SMALL_BYTES:
                with suppress(*UNREADABLE):  # reading it row by row then finds what is damaged
                    self.loaded[column] = np.asarray(array[:])
        return self.loaded[column]

    def _refuse(self, column: str, damaged: Mapping[int, str]) -> None:
        named = [f"{self.label(row)} ({why})" for row, why in sorted(damaged.items())[:5]]
        more = f" and {len(damaged) - 5} more" if len(damaged) > 5 else ""
        files = sorted({str(self._file(column, row).relative_to(self.folder.parent)) for row in damaged})
        raise DataError(
            f"{self.folder.parent}: '{column}' of {', '.join(named)}{more} is damaged, in {', '.join(files[:5])}; "
            "restore or rebuild the store"
        )

    def require_files(self, columns: Iterable[str]) -> None:
        """Raise DataError naming file and rows unless every shard of these columns is there."""
        for column in columns:
            array = self.arrays[column]
            shards = _shards(self.folder / column, array) if array is not None else []
            missing = [i for i, shard in enumerate(shards) if _is_lost(shard)]
            if missing:
                rows = [row for row in range(self.count) if self._shard_of(column, row) in missing]
                span = f"{self.label(rows[0])} to {self.label(rows[-1])}" if rows else "no row"
                raise DataError(
                    f"{self.folder.parent} is not whole: '{column}' lacks {len(missing)} of its {len(shards)} files, "
                    f"the first {shards[missing[0]]}, with {span}; restore or rebuild the store"
                )

    def _file(self, column: str, row: int) -> Path:
        array = self.arrays[column]
        return _shards(self.folder / column, array)[self._shard_of(column, row)] if array else self.folder / column

    def _shard_of(self, column: str, row: int) -> int:
        array = self.arrays[column]
        assert array is not None
        first = row
        if self.offsets is not None and column in self.ragged:
            first = min(int(self.offsets[row, self.ragged.index(column)]), array.shape[0] - 1)
        return first // _shard_rows(array)

    def _open(self, column: str) -> zarr.Array[Any] | None:
        if self.kinds.get(column) == "bytes" and not (self.folder / column).exists():
            return None  # bytes that are empty in every row have no array; if one was lost, the checksums tell
        try:
            array = self.group[column]
        except UNREADABLE as error:
            raise DataError(
                f"{self.folder}/{column}/zarr.json is missing or damaged: {error!r}; restore or rebuild the store"
            ) from error
        assert isinstance(array, zarr.Array)
        return array

    def _index(self, name: str, rows: int) -> Array:
        array = self._open(name)
        assert array is not None
        for shard in _shards(self.folder / name, array):
            if _is_lost(shard):
                raise DataError(f"{self.folder.parent} is not whole: it lacks {shard}; restore or rebuild the store")
        try:
            values = np.asarray(array[:])
        except UNREADABLE as error:
            raise DataError(f"{self.folder}/{name} cannot be read: {error}; restore or rebuild the store") from error
        if len(values) != rows:
            raise DataError(f"{self.folder}/{name} has {len(values)} rows, not {rows}; restore or rebuild the store")
        return values


def _shards(folder: Path, array: zarr.Array[Any]) -> list[Path]:
    """Return the files of an array that is cut along its first axis only."""
    zeros = ["0"] * (array.ndim - 1)
    return [folder.joinpath("c", str(i), *zeros) for i in range(-(-array.shape[0] // _shard_rows(array)))]


def _is_lost(shard: Path) -> bool:
    """Tell whether zarr would read zeros for a shard: it is missing, or empty as an interrupted copy leaves it."""
    return not shard.is_file() or shard.stat().st_size == 0


def _shard_rows(array: zarr.Array[Any]) -> int:
    return int((array.shards or array.chunks)[0])


def _runs(rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the rows as half-open runs without a gap, each row once."""
    ordered = sorted(set(rows))
    start = 0
    for i in range(1, len(ordered) + 1):
        if i == len(ordered) or ordered[i] != ordered[i - 1] + 1:
            yield ordered[start], ordered[i - 1] + 1
            start = i
