"""Files of a collection: which are pictures, how they are opened, and none outside the collection's folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from errno import EACCES, EISDIR, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR, EPERM
from pathlib import Path
from typing import Any, BinaryIO

from kolors_kernel.errors import DataError

PICTURES = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
"""The endings that make a file a picture, in lower case."""

_OF_THE_FILE = {EACCES, EISDIR, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR, EPERM}
"""What is wrong with a file alone; all else that the system reports, a disk that fails say, stops the run."""


def is_sidecar(name: str) -> bool:
    """Tell whether a field's name is the ending of a file beside the picture; if not, it is a key of the .json one."""
    return name.startswith(".")


def sidecars(names: Sequence[str]) -> list[str]:
    """Return the endings of the files that hold these fields."""
    return sorted({name if is_sidecar(name) else ".json" for name in names})


def values_of(files: dict[str, bytes], names: Sequence[str]) -> dict[str, Any]:
    """Return what the named fields hold in the files beside a picture, given by ending; DataError if not readable."""
    values: dict[str, Any] = {n: as_text(files[n], f"its {n}") for n in names if is_sidecar(n) and n in files}
    if ".json" in files and not all(map(is_sidecar, names)):
        values.update(as_object(files[".json"], "its .json"))
    return values


def as_text(data: bytes, what: str) -> str:
    """Decode UTF-8, with or without its mark at the start. Raises DataError, calling the bytes `what`."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{what} is not UTF-8: {error.reason} at byte {error.start}") from error


def as_object(data: bytes, what: str) -> dict[str, Any]:
    """Read a JSON object. Raises DataError, calling the bytes `what`."""
    try:
        found = json.loads(as_text(data, what))
    except ValueError as error:
        raise DataError(f"{what} is not JSON: {error}") from error
    except RecursionError as error:
        raise DataError(f"{what} is JSON nested too deep") from error
    if not isinstance(found, dict):
        raise DataError(f"{what} is a JSON {type(found).__name__}, and must be an object")
    return found


def inside(folder: Path, name: str) -> Path:
    """Return the file that a collection calls `name`, links followed.

    Raises DataError for a path that leads out of the collection's folder: absolute, by `..` or by a link.
    """
    try:
        path = Path(os.path.realpath(folder / name))
    except (ValueError, OSError) as error:  # a name with a zero byte, a loop of links
        raise DataError(f"'{name}' is no path: {error}") from error
    if not path.is_relative_to(os.path.realpath(folder)):
        raise DataError(f"'{name}' leads out of {folder}; bring the picture into that folder")
    return path


def open_file(path: Path) -> BinaryIO:
    """Open a file to read. Raises DataError when it is not there, no file, or may not be read."""
    try:
        return path.open("rb")
    except OSError as error:
        if error.errno not in _OF_THE_FILE:
            raise
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def files_of(path: Path, ending: str) -> Iterator[tuple[str, Path]]:
    """Yield the file itself, or every file of the ending below a folder, each with its name below that folder.

    Hidden ones are left out. Raises DataError when there is none, or a folder may not be read.
    """
    if path.is_file():
        yield path.name, path
        return
    found = []

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be listed: {error.strerror}") from error

    for folder, _, names in os.walk(path, onerror=refuse):
        found += [Path(folder) / name for name in names if name.endswith(ending) and not name.startswith(".")]
    if not found:
        raise DataError(f"there is no {ending} file in {path}")
    yield from sorted((each.relative_to(path).as_posix(), each) for each in found)


def stamp_of(*stats: os.stat_result) -> str:
    """Return a text that changes with the files: their sizes and when they were last written."""
    return " ".join(f"{each.st_size}:{each.st_mtime_ns}" for each in stats)
