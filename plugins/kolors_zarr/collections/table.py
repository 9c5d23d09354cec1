"""What parquet files and Hugging Face sets share: rows whose column `image` holds a picture or says where it is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from kolors_kernel.errors import DataError
from kolors_zarr.collections.files import inside, open_file
from kolors_zarr.collections.inputs import Fields


def columns_of(image: str, identity: str, fields: Fields, *, there: Collection[str], where: str) -> list[str]:
    """Return the columns to read. Raises DataError, calling the table `where`, when it has not all of them."""
    wanted = sorted({image, *fields.names, *filter(None, [identity])})
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
