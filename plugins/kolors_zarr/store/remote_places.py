"""Places behind a URL: object stores through obstore, all other file systems through fsspec.

Credentials and end points come from the environment, by the names the vendors' own tools use:

    s3://    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION; AWS_ENDPOINT_URL for another
             server than Amazon's; AWS_SKIP_SIGNATURE=true for a public bucket; without a key, the machine's own role
    gs://    GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT, the path of a key file; else the machine's
             account
    az://    AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN

http(s):// is for reading what a plain web server shows. What fsspec opens is set up as its package for that protocol
says; whether an object is written whole or not at all, and created by one of two writers only, is up to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from kolors_kernel.errors import DataError, needs

if TYPE_CHECKING:
    from kolors_zarr.store.places import Place

_OBJECT_STORES = ("s3", "s3a", "gs", "az", "abfs", "abfss", "http", "https")
_LONGEST = timedelta(seconds=20)
"""How long a request is tried again; a server that is not there is then reported and not waited for."""


def open_remote(url: str) -> Place:
    """Return the place at a URL; nothing is asked of it yet.

    Raises DataError for a URL that cannot be understood, MissingDependency when the package it needs is not installed.
    """
    if url.split("://")[0] in _OBJECT_STORES:
        return ObjectStore(url)
    return FileSystem(url)


class ObjectStore:
    """A place in a bucket, through obstore."""

    def __init__(self, url: str) -> None:
        with needs("obstore", extra="remote", wanted_by=url):
            import obstore
        self.url = url.rstrip("/")
        self._obstore: Any = obstore
        try:
            self._store: Any = obstore.store.from_url(
                self.url,
                client_options={"allow_http": True},  # an http:// end point was meant by who named it
                retry_config={"retry_timeout": _LONGEST},
            )
        except obstore.exceptions.BaseError as error:
            raise DataError(f"{url} is not the URL of a place in an object store: {error}") from error

    def __reduce__(self) -> tuple[type[ObjectStore], tuple[str]]:
        return ObjectStore, (self.url,)

    def read(self, key: str) -> bytes:
        """Return an object."""
        with self._failures(key):
            data: bytes = self._obstore.get(self._store, key).bytes().to_bytes()
        return data

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return parts of an object, asked for at the same time; neighbours come in one answer."""
        starts, lengths = [start for start, _ in ranges], [length for _, length in ranges]
        with self._failures(key):
            found = self._obstore.get_ranges(self._store, key, starts=starts, lengths=lengths)
        return [each.to_bytes() for each in found]

    def size(self, key: str) -> int:
        """Return the bytes of an object."""
        with self._failures(key):
            return int(self._obstore.head(self._store, key)["size"])

    def write(self, key: str, data: bytes) -> None:
        """Store an object."""
        with self._failures(key):
            self._obstore.put(self._store, key, data)

    def create(self, key: str, data: bytes) -> bool:
        """Store an object on the condition that there is none, which the server sees to."""
        with self._failures(key):
            try:
                self._obstore.put(self._store, key, data, mode="create")
            except self._obstore.exceptions.AlreadyExistsError:
                return False
        return True

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys below a prefix."""
        with self._failures(prefix):
            for found in self._obstore.list(self._store, prefix or None):
                yield from (each["path"] for each in found)

    def clear(self, prefix: str) -> None:
        """Remove the objects below a prefix, many with each request."""
        with self._failures(prefix):
            self._obstore.delete(self._store, list(self.keys(prefix)))

    @contextmanager
    def _failures(self, key: str) -> Iterator[None]:
        """Raise obstore's errors as those of the operating system."""
        known = self._obstore.exceptions
        try:
            yield
        except (FileNotFoundError, known.BaseError) as error:
            where, text = f"{self.url}/{key}", str(error)
            # What goes wrong with a listing comes as a general error, and only its text says which.
            if isinstance(error, FileNotFoundError | known.NotFoundError) or "NoSuchBucket" in text:
                what = "the bucket does not exist" if "NoSuchBucket" in text else "there is no such object"
                raise FileNotFoundError(f"{where}: {what}") from error
            refusals = known.PermissionDeniedError | known.UnauthenticatedError
            if isinstance(error, refusals) or "403 Forbidden" in text or "401 Unauthorized" in text:
                hint = "credentials come from the environment, as AWS_ACCESS_KEY_ID and its like"
                raise PermissionError(f"{where}: the server refuses access; {hint}: {_brief(text)}") from error
            raise OSError(f"{where}: {_brief(text)}") from error


class FileSystem:
    """A place in a file system of fsspec."""

    def __init__(self, url: str) -> None:
        with needs("fsspec", extra="remote", wanted_by=url):
            import fsspec  # type: ignore[import-untyped]
        self.url = url.rstrip("/")
        try:
            self._files, self._root = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise DataError(f"{url} cannot be opened: {error}") from error

    def read(self, key: str) -> bytes:
        """Return a file's bytes."""
        data: bytes = self._files.cat_file(self._path(key))
        return data

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return parts of a file."""
        starts, ends = [start for start, _ in ranges], [start + length for start, length in ranges]
        found: list[bytes] = self._files.cat_ranges([self._path(key)] * len(ranges), starts, ends, on_error="raise")
        return found

    def size(self, key: str) -> int:
        """Return the bytes of a file."""
        return int(self._files.info(self._path(key))["size"])

    def write(self, key: str, data: bytes) -> None:
        """Store a file."""
        self._make_parent(key)
        self._files.pipe_file(self._path(key), data)

    def create(self, key: str, data: bytes) -> bool:
        """Store a file unless there is one, as exclusively as the file system can."""
        self._make_parent(key)
        try:
            self._files.pipe_file(self._path(key), data, mode="create")
        except FileExistsError:
            return False
        return True

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the files below a folder."""
        self._files.invalidate_cache()  # others write here too
        for path in self._files.find(self._path(prefix)):
            yield str(path).removeprefix(self._root.rstrip("/") + "/")

    def clear(self, prefix: str) -> None:
        """Remove a folder, if it is there."""
        if self._files.exists(self._path(prefix)):
            self._files.rm(self._path(prefix), recursive=True)

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}".rstrip("/")

    def _make_parent(self, key: str) -> None:
        self._files.makedirs(self._path(key).rpartition("/")[0], exist_ok=True)


def _brief(text: str) -> str:
    """Return the first line of an error of obstore without the server's document; the rest is its inner state."""
    return text.strip().split("\n")[0].split("<?xml")[0].rstrip(": ")
