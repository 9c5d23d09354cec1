from __future__ import annotations

import errno
import os
import pickle
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest
from kolors_zarr.store.places import Folder, Place, exists, open_place, writing

from kolors_kernel.errors import DataError, MissingDependency, RunError

Made = Callable[[], Place]


@pytest.fixture(params=["folder", "memory", "fsspec"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    memory = f"memory://{uuid4().hex}/s"
    urls = {"folder": str(tmp_path / "s"), "memory": memory, "fsspec": f"local://{tmp_path}/s"}
    return open_place(urls[request.param])


def test_what_was_written_is_read_whole_and_in_ranges(place: Place) -> None:
    data = os.urandom(1000)
    place.write("a/b/c", data)
    assert place.read("a/b/c") == data
    assert place.size("a/b/c") == 1000
    assert place.read_ranges("a/b/c", [(990, 10), (0, 1), (5, 100)]) == [data[990:], data[:1], data[5:105]]
    assert place.read_ranges("a/b/c", []) == []


def test_a_write_replaces_and_a_creation_does_not(place: Place) -> None:
    place.write("x", b"one")
    place.write("x", b"two")
    assert place.create("x", b"three") is False
    assert place.create("y", b"four") is True
    assert (place.read("x"), place.read("y")) == (b"two", b"four")


def test_what_is_not_there_is_said_to_be_missing(place: Place) -> None:
    for ask in (place.read, place.size, lambda key: place.read_ranges(key, [(0, 1)])):
        with pytest.raises(FileNotFoundError):
            ask("a/b")
    assert not exists(place, "a/b")
    assert list(place.keys("")) == list(place.keys("a/")) == []
    place.clear("a/")
    place.clear("")


def test_keys_are_those_below_a_folder_and_no_others(place: Place) -> None:
    for key in ("a/1", "a/b/2", "ab/3", "4"):
        place.write(key, b"x")
    assert sorted(place.keys("a/")) == ["a/1", "a/b/2"]
    assert sorted(place.keys("")) == ["4", "a/1", "a/b/2", "ab/3"]
    place.clear("a/")
    assert sorted(place.keys("")) == ["4", "ab/3"]
    place.clear("")
    assert list(place.keys("")) == []


def test_a_place_goes_to_another_process_by_its_url(place: Place) -> None:
    place.write("x", b"one")
    assert pickle.loads(pickle.dumps(place)).read("x") == b"one"


def test_of_many_who_create_a_file_one_succeeds(tmp_path: Path) -> None:
    place = open_place(tmp_path / "s")
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda i: place.create("manifest", str(i).encode()), range(40)))
    assert made.count(True) == 1
    assert place.read("manifest") == str(made.index(True)).encode()


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = open_place(tmp_path / "s")
    place.write("x", b"one")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "fsync", full)
    for act in (place.write, place.create):
        with pytest.raises(OSError, match="no space"):
            act("x", b"two")
    assert place.read("x") == b"one"
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["x"]


def test_what_a_killed_writer_left_is_no_object(tmp_path: Path) -> None:
    place = open_place(tmp_path / "s")
    place.write("parts/a", b"one")
    (tmp_path / "s/parts/0.partial").write_bytes(b"half")
    assert list(place.keys("parts/")) == ["parts/a"]
    place.clear("parts/")
    assert list((tmp_path / "s").iterdir()) == []


def test_files_can_be_read_by_whom_the_folder_lets(tmp_path: Path) -> None:
    place = open_place(tmp_path / "s")
    place.write("x", b"one")
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "s/x").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("url", ["s", Path("s"), "file://{here}/s"])
def test_local_urls_are_folders(url: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = open_place(str(url).format(here=tmp_path) if isinstance(url, str) else url)
    assert isinstance(place, Folder)
    assert place.path == tmp_path / "s"


@pytest.mark.parametrize("url", ["nonsense://a/b", "s3://", "az://"])
def test_a_url_of_no_place_is_refused(url: str) -> None:
    with pytest.raises(DataError, match=f"^{url}"):
        open_place(url)


def test_a_package_that_is_not_installed_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(MissingDependency, match=r"'s3://a/b' needs .* pip install 'kolors-kernel\[remote\]'"):
        open_place("s3://a/b")


@pytest.mark.parametrize(
    ("number", "why"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the quota is used up"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EACCES, "there is no right to write"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_a_place_that_cannot_be_written_is_named_with_the_reason(number: int, why: str, tmp_path: Path) -> None:
    with (
        pytest.raises(RunError, match=rf"the store {tmp_path} could not be written: .*{why}.*; all stays"),
        writing(open_place(tmp_path), left="all stays"),
    ):
        raise OSError(number, os.strerror(number))
