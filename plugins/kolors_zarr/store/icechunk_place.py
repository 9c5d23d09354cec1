"""A place in an Icechunk repository, for a store that comes to be seen in steps. Needs Python 3.12 or newer.

    icechunk+file:///path            a folder
    icechunk+s3://bucket/prefix      a bucket; credentials and end point as `kolors_zarr.store.remote_places` says

Zarr's documents and chunks have their own keys in the repository, so that zarr reads a published store from a session
of Icechunk as from any other place. Every other file, as the manifest, is a column `files/KEY` of one row of bytes.

Documents and chunks that are written wait for the next other file and come to be seen with it, in one commit: a part
with its part row, a store with its manifest. Until then only this place has them, and it loses them when the process
ends; a copy that goes to another process is without them. What a commit that failed was of waits for the next. For a
chunk that has no array yet, which Icechunk refuses, one of as many axes stands in until its document is written.

Other files are read as they are now. Documents and chunks are read as they were at the first of them that was read
after such a file, so that a store that is open stays as it is, even when it is cleared.

In a folder Icechunk loses commits that are made at the same time, as it warns. Here they take turns by a lock in that
folder, which holds between the processes of one machine; several machines need a bucket.

Every commit stays in the history with a list of all arrays, one for each part among them, so that 2,000 parts leave
some 400 MB of it, and twice as many four times that. That, and what is cleared or replaced, takes room until
Icechunk's `expire_snapshots` and `garbage_collect` remove it.
"""

from __future__ import annotations

import asyncio
import atexit
import errno
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from threading import RLock
from typing import Any, TypeVar

from filelock import FileLock
from zarr.abc.store import RangeByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from kolors_kernel.errors import DataError, needs
from kolors_zarr.store.documents import samples_document
from kolors_zarr.store.manifest import Column
from kolors_zarr.store.shard import encode_element, encode_shard, index_bytes

T = TypeVar("T")
_CHUNK = re.compile(r"(.+)/c((?:/\d+)+)")
_FILES = "files/"
_FILE = samples_document(Column(kind="bytes"), shards=1, shard_rows=1)
_BEFORE, _AFTER = len(encode_element(b"")), 4 + index_bytes(1)
"""Bytes around those of a file in its shard of one row."""
_MOST_SHARDS = 2**31
_REFUSED = re.compile("AccessDenied|AccessKeyId|Signature|Token|Forbidden")
"""What is in the names of S3's errors about who may do what."""


class IcechunkPlace:
    """A place in a repository, which is made when it is first written to. Raises DataError for a URL of another kind.

    Documents and chunks are read as they were in a `snapshot`, if one is given, until another file is read.
    """

    def __init__(self, url: str, snapshot: str | None = None) -> None:
        with needs("icechunk", extra="icechunk", wanted_by=f"{url} on Python 3.12 or newer"):
            import icechunk
        _wait_at_exit()
        self.url = url.rstrip("/")
        self._icechunk: Any = icechunk
        self._storage, self._turns = _storage(self._icechunk, self.url)
        self._repository: Any = None
        self._snapshot = snapshot
        self._seen: Any = None  # the session that documents and chunks are read from
        self._draft: Any = None  # the session of what waits
        self._waiting: set[str] = set()
        self._lock = RLock()

    def __reduce__(self) -> tuple[type[IcechunkPlace], tuple[str, str | None]]:
        return IcechunkPlace, (self.url, self._seen.snapshot_id if self._seen else self._snapshot)

    def read(self, key: str) -> bytes:
        """Return an object."""
        with self._failures(key):
            found = _get(self._session(key), _stored(key), [None])
        data = self._present(found[0], key)
        return data if _is_zarr(key) else data[_BEFORE:-_AFTER]

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return parts of an object, asked for at the same time."""
        skip = 0 if _is_zarr(key) else _BEFORE
        wanted = [RangeByteRequest(skip + start, skip + start + length) for start, length in ranges]
        with self._failures(key):
            found = _get(self._session(key), _stored(key), wanted)
        return [self._present(each, key) for each in found]

    def size(self, key: str) -> int:
        """Return the bytes of an object."""
        with self._failures(key):
            found = sync(self._session(key).store.getsize(_stored(key)))
        size: int = self._present(found or None, key)  # 0 stands for a chunk that is not in its array
        return size if _is_zarr(key) else size - _BEFORE - _AFTER

    def write(self, key: str, data: bytes) -> None:
        """Store an object: a document or a chunk with the next other file, anything else at once."""
        if not _is_zarr(key):
            self._commit("write", key, lambda draft: _put(draft, key, data))
            return
        with self._lock, self._failures(key):
            self._draft = self._draft or self._begin()
            _put(self._draft, key, data)
            self._waiting.add(key)

    def create(self, key: str, data: bytes) -> bool:
        """Store an object in a commit that fails when another made the same."""

        def change(draft: Any) -> bool:
            return not _has(self._newest(), _stored(key)) and _put(draft, key, data)

        return self._commit("create", key, change)

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys below a prefix."""
        try:
            with self._lock, self._failures(prefix):
                found = self._waiting | set(_keys(self._newest()))
        except FileNotFoundError:
            return
        yield from (key for key in found if key.startswith(prefix))

    def clear(self, prefix: str) -> None:
        """Remove all objects below a prefix, in one commit."""

        def change(draft: Any) -> bool:
            # In this order chunks come before their document, with which the array goes.
            for key in sorted(key for key in _keys(draft) if key.startswith(prefix)):
                sync(draft.store.delete(key if _is_zarr(key) else f"{_FILES}{key}/zarr.json"))
            return True

        if next(self.keys(prefix), None) is not None:
            self._commit("clear", prefix, change)

    def _session(self, key: str) -> Any:
        if not _is_zarr(key):
            self._seen = self._snapshot = None
            return self._newest()
        with self._lock:
            if key in self._waiting:
                return self._draft
            if self._seen is None and self._snapshot:
                self._seen = self._open().readonly_session(snapshot_id=self._snapshot)
            self._seen = self._seen or self._newest()
            return self._seen

    def _newest(self) -> Any:
        return self._open().readonly_session("main")

    def _begin(self) -> Any:
        with self._lock:
            self._repository = self._repository or self._icechunk.Repository.open_or_create(self._storage)
        return self._repository.writable_session("main")

    def _open(self) -> Any:
        with self._lock:
            self._repository = self._repository or self._icechunk.Repository.open(self._storage)
        return self._repository

    def _commit(self, verb: str, key: str, change: Callable[[Any], bool]) -> bool:
        """Make a change and commit it with what waits, or do nothing where it returns False; return what it did.

        A commit that others came before is put upon theirs, and is made anew where both changed the same.
        """
        with self._lock, self._failures(key):
            while True:
                draft = self._draft or self._begin()
                if not change(draft):
                    return False
                try:
                    with self._turns:
                        detector = self._icechunk.ConflictDetector()
                        draft.commit(f"{verb} {key}", rebase_with=detector, allow_empty=True)
                except self._icechunk.ConflictError:
                    anew = self._begin()
                    for each in self._waiting:
                        for data in filter(None, _get(draft, each, [None])):  # unless the change cleared it
                            _put(anew, each, data)
                    self._draft = anew
                else:
                    self._draft = self._seen = self._snapshot = None
                    self._waiting.clear()
                    return True

    def _present(self, found: T | None, key: str) -> T:
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "there is no such object", f"{self.url}/{key}")
        return found

    @contextmanager
    def _failures(self, key: str) -> Iterator[None]:
        """Raise Icechunk's errors as those of the operating system."""
        try:
            yield
        except self._icechunk.IcechunkError as error:
            what = str(error).split("\n")[0]
            named = re.search(r"os error (\d+)", what)
            number = int(named[1]) if named else errno.EIO
            if error.kind.endswith("not-found") or "NoSuchBucket" in what:
                number = errno.ENOENT
            elif _REFUSED.search(what):
                number = errno.EACCES
            raise OSError(number, what, f"{self.url}/{key}") from error


def _storage(icechunk: Any, url: str) -> tuple[Any, AbstractContextManager[Any]]:
    """Return where a repository is, and the turns that its commits take."""
    kind, _, where = url.removeprefix("icechunk+").partition("://")
    bucket, _, prefix = where.partition("/")
    if kind == "file" and where.startswith("/"):
        return icechunk.local_filesystem_storage(where), FileLock(f"{where}/commit.lock")
    if kind == "s3" and bucket and prefix:
        public = os.environ.get("AWS_SKIP_SIGNATURE", "").lower() == "true"
        # As obstore does: any server's own names, and http where the end point says so.
        how = {"anonymous": public, "from_env": not public, "allow_http": True, "force_path_style": True}
        return icechunk.s3_storage(bucket=bucket, prefix=prefix, **how), nullcontext()
    raise DataError(f"{url} is no place for Icechunk: use icechunk+file:///path or icechunk+s3://bucket/prefix")


@cache
def _wait_at_exit() -> None:
    """Let Icechunk's threads come to rest before Python ends, once.

    One that is still handing over its last answer then, after all is done, ends the process by a segmentation fault;
    pyo3-async-runtimes, which it is written with, has no way to wait for it.
    """
    atexit.register(time.sleep, 0.1)


def _is_zarr(key: str) -> bool:
    """Tell whether a key is of a document or of a chunk."""
    return key.split("/")[-1] == "zarr.json" or _CHUNK.fullmatch(key) is not None


def _stored(key: str) -> str:
    return key if _is_zarr(key) else f"{_FILES}{key}/c/0"


def _keys(session: Any) -> Iterator[str]:
    """Yield the keys of a session as the place has them."""

    async def listed() -> list[str]:
        return [key async for key in session.store.list()]

    for key in sync(listed()):
        if not key.startswith(_FILES):
            yield key
        elif key.endswith("/zarr.json"):
            yield key.removeprefix(_FILES).removesuffix("/zarr.json")


def _has(session: Any, stored: str) -> bool:
    return bool(sync(session.store.exists(stored)))


def _get(session: Any, stored: str, ranges: Sequence[RangeByteRequest | None]) -> list[bytes | None]:
    """Return parts of an object of a session, or for None the whole; None for each where it is not there."""

    async def asked() -> list[Any]:
        return await asyncio.gather(*(session.store.get(stored, default_buffer_prototype(), each) for each in ranges))

    return [None if each is None else each.to_bytes() for each in sync(asked())]


def _put(session: Any, key: str, data: bytes) -> bool:
    """Set an object in a session, and before it the document of its array, which Icechunk wants to be there."""
    stored, own = _stored(key), _is_zarr(key)
    chunk = _CHUNK.fullmatch(stored)
    if chunk and not _has(session, f"{chunk[1]}/zarr.json"):
        column = Column(kind="array", dtype="uint8", shape=(1,) * (chunk[2].count("/") - 1))
        stand_in = samples_document(column, shards=_MOST_SHARDS, shard_rows=1)
        _put(session, f"{chunk[1]}/zarr.json", stand_in if own else _FILE)
    content = data if own else encode_shard([encode_element(data)], 1)
    sync(session.store.set(stored, default_buffer_prototype().buffer.from_bytes(content)))
    return True
