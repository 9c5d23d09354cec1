"""Where a store lies: a folder, an object store, any fsspec file system. Keys are relative and use slashes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Protocol


class Place(Protocol):
    """A flat store of objects. Reading what is not there raises FileNotFoundError; a write is whole or not at all."""

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
        """Yield the keys below a prefix that ends in a slash, in no order."""

    def delete(self, key: str) -> None:
        """Remove an object, if it is there."""


class Folder:
    """A place in the local file system."""

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
        self._written(key, data).replace(self.path / key)

    def create(self, key: str, data: bytes) -> bool:
        """Write a file under another name and link it to its own, which fails where there is one."""
        temporary = self._written(key, data)
        try:
            os.link(temporary, self.path / key)
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        return True

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the files below a folder."""
        for folder, _, files in os.walk(self.path / prefix):
            for name in files:
                yield (Path(folder) / name).relative_to(self.path).as_posix()

    def delete(self, key: str) -> None:
        """Remove a file."""
        (self.path / key).unlink(missing_ok=True)

    def _written(self, key: str, data: bytes) -> Path:
        target = self.path / key
        target.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=target.parent, prefix=".", suffix=".partial", delete=False) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return Path(file.name)
