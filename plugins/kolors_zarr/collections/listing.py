"""Listings: CSV, TSV or JSON lines that name picture files and say what is known of them."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any, BinaryIO

from kolors_kernel.errors import DataError
from kolors_zarr.collections.files import as_object, as_text, open_file, stamp_of
from kolors_zarr.collections.inputs import Fields, Input
from kolors_zarr.collections.table import Table

DELIMITERS = {".csv": ",", ".tsv": "\t"}


class Listing(Table):
    """The rows of a listing, whose paths start at its folder; where an input is: offset and bytes of its row."""

    def __init__(self, path: Path, fields: Fields, *, image: str, identity: str) -> None:
        super().__init__(path.parent, fields, image=image, identity=identity)
        self.path = path
        self.delimiter = DELIMITERS.get(path.suffix.lower(), "")

    @cached_property
    def header(self) -> list[str]:
        """The columns of a CSV or TSV. Raises DataError when one that is read is not there."""
        with open_file(self.path) as file:
            names = self._fields(next(self._records(file), b""))
        self.columns(names, where=str(self.path))
        return names

    def inputs(self) -> Iterator[Input]:
        """List every row but blank ones, damaged ones too. Raises DataError when a CSV has not the columns."""
        line, offset = 1, 0
        with open_file(self.path) as file:
            stamp, records = stamp_of(os.fstat(file.fileno())), self._records(file)
            if self.delimiter and self.header:
                skipped = next(records)
                line, offset = 1 + skipped.count(b"\n"), len(skipped)
            for record in records:
                if record.strip():
                    yield self._input(f"{self.path.name}:{line}", record, offset, stamp)
                line, offset = line + record.count(b"\n"), offset + len(record)

    def _records(self, file: BinaryIO) -> Iterator[bytes]:
        """Yield the bytes of each row; one of a CSV may have several lines."""
        if not self.delimiter:
            yield from file
            return
        taken: list[bytes] = []

        def lines() -> Iterator[str]:
            for line in file:
                taken.append(line)
                yield line.decode("latin-1")  # which tells where a row ends, as the signs of CSV are ASCII

        ends = csv.reader(lines(), delimiter=self.delimiter)
        while True:
            with suppress(csv.Error):  # said when the row is read
                next(ends, None)
            if not taken:
                return
            yield b"".join(taken)
            taken.clear()

    def _input(self, place: str, record: bytes, offset: int, stamp: str) -> Input:
        try:
            row = self._parsed(record)
            path = self._path(row)
            name = str(row.get(self.identity) or "") if self.identity else path
            if not name:
                raise DataError(f"it has no '{self.identity}'")
        except DataError as error:
            return Input(place, problem=str(error))
        with suppress(OSError, ValueError):  # said when the picture is opened
            stamp = f"{stamp} {stamp_of(os.stat(self.folder / path))}"
        return Input(name, (offset, len(record)), stamp)

    def _path(self, row: dict[str, Any]) -> str:
        path = row.get(self.image)
        if not isinstance(path, str) or not path.strip():
            raise DataError(f"it names no picture: its '{self.image}' is {path!r}")
        return path

    def _parsed(self, record: bytes) -> dict[str, Any]:
        if not self.delimiter:
            return as_object(record, "the line")
        cells = self._fields(record)
        if len(cells) != len(self.header):
            raise DataError(f"the row has {len(cells)} cells and the header {len(self.header)}")
        return dict(zip(self.header, cells, strict=True))

    def _fields(self, record: bytes) -> list[str]:
        text = StringIO(as_text(record, "the row"), newline="")
        try:
            return next(csv.reader(text, delimiter=self.delimiter, strict=True), [])
        except csv.Error as error:
            raise DataError(f"the row cannot be read: {error}") from error

    def row(self, each: Input) -> dict[str, Any]:
        """Return a row of the file."""
        offset, length = each.where
        with open_file(self.path) as file:
            file.seek(offset)
            return self._parsed(file.read(length))
