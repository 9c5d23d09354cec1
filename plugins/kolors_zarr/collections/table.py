"""What tables share, of whatever form: rows with a column that holds a picture or says where it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from kolors_kernel.errors import DataError
from kolors_zarr.collections.files import inside, open_file
from kolors_zarr.collections.inputs import Entry, Fields, Input


class Table(ABC):
    """Rows; `image` is the column of the picture, `identity` that of the id or empty, and paths start at `folder`."""

    def __init__(self, folder: Path, fields: Fields, *, image: str, identity: str) -> None:
        self.folder, self.fields, self.image, self.identity = folder, fields, image, identity

    @abstractmethod
    def row(self, each: Input) -> Mapping[str, Any]:
        """Return a row by column. Raises DataError when it cannot be read."""

    def open(self, each: Input) -> BinaryIO:
        """Return the picture. Raises DataError when there is none, or its path leads out of the folder or nowhere."""
        return picture_of(self.row(each)[self.image], self.folder)

    def read(self, each: Input) -> Entry:
        """Return the picture with what its row says."""
        row = self.row(each)
        with picture_of(row[self.image], self.folder) as file:
            return self.fields.entry(file.read(), row)

    def input(self, row: str, identity: object, *, where: tuple[Any, ...], stamp: str) -> Input:
        """Return the input of a row by the id in it, or by what the row is called where the table has no ids."""
        if not self.identity:
            return Input(row, where, stamp)
        if identity is None or identity == "":
            return Input(row, where, stamp, f"it has no '{self.identity}'")
        return Input(str(identity), where, stamp)

    def columns(self, there: Collection[str], *, where: str) -> list[str]:
        """Return the columns to read. Raises DataError, calling the table `where`, when one is not among `there`."""
        wanted = sorted({self.image, *self.fields.names, *filter(None, [self.identity])})
        missing = [name for name in wanted if name not in there]
        if missing:
            raise DataError(f"{where} has no column '{missing[0]}'; it has {', '.join(sorted(there))}")
        return wanted


def picture_of(cell: Any, folder: Path) -> BinaryIO:
    """Return the picture that a cell holds: its bytes, or {bytes, path} with one of them, or a path below `folder`.

    Raises DataError when it is none of them.
    """
    data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, Mapping) else (cell, cell)
    if isinstance(data, bytes):
        return BytesIO(data)
    if isinstance(path, str):
        return open_file(inside(folder, path))
    raise DataError("it has no picture: neither its bytes nor a path")
