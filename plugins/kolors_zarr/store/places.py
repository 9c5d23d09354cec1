"""Where a store lies: a folder, an object store, any fsspec file system. Keys are relative and use slashes."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from kolors_kernel.errors import RunError
from kolors_zarr.store.layout import PARTS

_WHY = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "a file grew too large",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "there is no right to write",
}


class Place(Protocol):
    """A flat store of objects. A write is whole or not at all.

    Reading what is not there raises FileNotFoundError, what is not allowed PermissionError, all else that fails
    OSError. A place can be pickled, and used by several threads.
    """

    url: str
    """What it is called in messages."""

    def read(self, key: str) -> bytes:
        """Return an object."""

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return parts of an object, each (start, length)."""

    def size(self, key: str) -> int:
        """Return the bytes of an object."""

    def write(self, key: str, data: bytes) -> None:
        """Store an object, over what is there."""

    def create(self, key: str, data: bytes) -> bool:
        """Store an object unless there is one already; return whether it was stored."""

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys below a prefix that ends in a slash, or all below "", in no order."""

    def clear(self, prefix: str) -> None:
        """Remove all objects below such a prefix."""


class Folder:
    """A place in the local file system.

    What is not yet whole is in the folder of the parts, so that nothing of a writer that was killed stays in a store.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = str(path)

    def read(self, key: str) -> bytes:
        """Return a file's bytes."""
        return (self.path / key).read_bytes()

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return parts of a file."""
        with (self.path / key).open("rb") as file:
            return [os.pread(file.fileno(), length, start) for start, length in ranges]

    def size(self, key: str) -> int:
        """Return the bytes of a file."""
        return (self.path / key).stat().st_size

    def write(self, key: str, data: bytes) -> None:
        """Write a file under another name and rename it."""
        with self._written(key, data) as temporary:
            temporary.replace(self.path / key)

    def create(self, key: str, data: bytes) -> bool:
        """Write a file under another name and link it to its own, which fails where there is one."""
        with self._written(key, data) as temporary:
            try:
                os.link(temporary, self.path / key)
            except FileExistsError:
                return False
        return True

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the files below a folder, but those that are not whole."""
        if not (self.path / prefix).exists():
            return
        for folder, _, files in os.walk(self.path / prefix, onerror=_raise):
            for name in files:
                if not name.endswith(".partial"):
                    yield (Path(folder) / name).relative_to(self.path).as_posix()

    def clear(self, prefix: str) -> None:
        """Remove a folder, if it is there."""
        if (self.path / prefix).exists():
            shutil.rmtree(self.path / prefix)

    @contextmanager
    def _written(self, key: str, data: bytes) -> Iterator[Path]:
        temporary = self.path / PARTS / f"{uuid4().hex}.partial"
        for folder in (temporary.parent, (self.path / key).parent):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)


def open_place(url: str | Path, *, below: Path = Path()) -> Place:
    """Return the place of a local path, `below` a folder if it is not absolute, or of a URL.

    Raises DataError for a URL of no kind that is known.

    s3, gs, az, http and https are read and written by obstore, everything else by fsspec; see
    `kolors_zarr.store.remote_places` for where credentials come from. What begins with icechunk+ is a repository, see
    `kolors_zarr.store.icechunk_place`.
    """
    text = str(url)
    if isinstance(url, Path) or "://" not in text:
        return Folder(Path(os.path.abspath(below / url)))
    if text.startswith("file://"):
        return Folder(Path(text.removeprefix("file://")))
    if text.startswith("icechunk+"):
        from kolors_zarr.store.icechunk_place import IcechunkPlace

        return IcechunkPlace(text)
    from kolors_zarr.store.remote_places import open_remote

    return open_remote(text)


def exists(place: Place, key: str) -> bool:
    """Tell whether a place has an object."""
    try:
        place.size(key)
    except FileNotFoundError:
        return False
    return True


@contextmanager
def writing(place: Place, *, left: str) -> Iterator[None]:
    """Turn what can go wrong with a place while it is written into a RunError that says why and what is `left`."""
    try:
        yield
    except OSError as error:
        why = _WHY.get(error.errno or 0)
        told = f"{why} ({error})" if why else str(error)
        raise RunError(f"the store {place.url} could not be written: {told}; {left}") from error


def _raise(error: OSError) -> None:
    raise error
