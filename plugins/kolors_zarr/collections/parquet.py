"""Parquet files, those of Hugging Face sets among them, read a row at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyarrow import ArrowException
from pyarrow.parquet import ParquetFile

from kolors_kernel.errors import DataError
from kolors_zarr.collections.files import files_of, stamp_of
from kolors_zarr.collections.inputs import Fields, Input
from kolors_zarr.collections.table import Table

_ROWS = 16
"""How many rows are in memory at a time; a row group may hold gigabytes of pictures."""


class ParquetFiles(Table):
    """The rows of a parquet file, or of all below a folder; where an input is: the file, the row group, the row in it.

    Rows are quick to read in their order; going back starts a row group anew.
    """

    def __init__(self, path: Path, fields: Fields, *, image: str, identity: str) -> None:
        super().__init__(path if path.is_dir() else path.parent, fields, image=image, identity=identity)
        self.files = dict(files_of(path, ".parquet"))
        self._rows = _Rows(Path(), 0, [])

    def inputs(self) -> Iterator[Input]:
        """List every row; a file that cannot be read is one input. Raises DataError when a column is not there."""
        for name, path in self.files.items():
            try:
                yield from self._inputs(name, path)
            except (ArrowException, OSError) as error:
                yield Input(name, problem=f"not a parquet file that can be read: {error}")

    def _inputs(self, name: str, path: Path) -> Iterator[Input]:
        stamp, first = stamp_of(path.stat()), 0
        with ParquetFile(path) as file:
            self.columns(file.schema_arrow.names, where=str(path))
            for group in range(file.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                ids: list[Any] = [None] * count
                if self.identity:
                    ids = file.read_row_group(group, columns=[self.identity])[0].to_pylist()
                for row, each in enumerate(ids):
                    yield self.input(f"{name}:{first + row}", each, where=(name, group, row), stamp=stamp)
                first += count

    def row(self, each: Input) -> dict[str, Any]:
        """Return a row of a file."""
        name, group, row = each.where
        path = self.files[name]
        try:
            if not self._rows.can_reach(path, group, row):
                self._rows = _Rows(path, group, sorted({self.image, *self.fields.names}))
            return self._rows.read(row)
        except (ArrowException, OSError) as error:
            self._rows = _Rows(Path(), 0, [])
            raise DataError(f"row group {group} of {path} cannot be read: {error}") from error


class _Rows:
    """A few rows of a row group at a time, going forward."""

    def __init__(self, path: Path, group: int, columns: list[str]) -> None:
        self.path, self.group = path, group
        self.start = self.end = 0
        self.batches: Iterator[Any] = iter(())
        self.batch: Any = None
        if columns:
            file = ParquetFile(path, memory_map=True)
            self.batches = file.iter_batches(_ROWS, row_groups=[group], columns=columns, use_threads=False)

    def can_reach(self, path: Path, group: int, row: int) -> bool:
        return (path, group) == (self.path, self.group) and row >= self.start

    def read(self, row: int) -> dict[str, Any]:
        while row >= self.end:
            self.batch = next(self.batches)
            self.start, self.end = self.end, self.end + self.batch.num_rows
        return dict(self.batch.slice(row - self.start, 1).to_pylist()[0])
