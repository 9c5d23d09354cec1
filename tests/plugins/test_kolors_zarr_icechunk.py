"""Stores in Icechunk repositories, in a folder and in a bucket. Icechunk needs Python 3.12."""

from __future__ import annotations

import importlib.util
import inspect
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import zarr
from kolors_zarr.store.damage import DamagedSamples
from kolors_zarr.store.icechunk_place import IcechunkPlace
from kolors_zarr.store.places import Place, exists, open_place
from kolors_zarr.store.reading import Store
from kolors_zarr.store.sink import ZarrStoreSink
from kolors_zarr.store.writing import write_store

from kolors_kernel.errors import DataError, MissingDependency, RunError
from kolors_kernel.values import Sample


def beside(name: str) -> ModuleType:
    """Return another module of tests, whose samples, server and contract are wanted here."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


S3 = beside("test_kolors_zarr_s3")
server, bucket, sample, parts = S3.server, S3.bucket, S3.sample, S3.parts
for name, function in vars(beside("test_kolors_zarr_places")).items():
    if name.startswith("test_") and [*inspect.signature(function).parameters] == ["place"]:
        globals()[name] = function


@pytest.fixture
def icechunk() -> Any:
    return pytest.importorskip("icechunk", reason="needs icechunk, which is for Python 3.12 and newer")


@pytest.fixture(params=["file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path, icechunk: Any) -> str:
    return f"icechunk+{request.getfixturevalue('bucket')}" if request.param == "s3" else f"icechunk+file://{tmp_path}/s"


@pytest.fixture
def local(tmp_path: Path, icechunk: Any) -> str:
    return f"icechunk+file://{tmp_path}/s"


@pytest.fixture
def place(url: str) -> Place:
    return open_place(url)


def samples(count: int = 12) -> Iterator[Sample]:
    return (sample(i) for i in range(count))


def content(place: Place) -> dict[str, bytes]:
    return {key: place.read(key) for key in place.keys("")}


# What becomes seen, and when


def test_a_chunk_is_seen_with_the_next_file_that_is_not_zarrs(url: str) -> None:
    place, other = open_place(url), open_place(url)
    place.write("parts/0", b"row")
    place.write("samples/any/id/c/7", b"shard")
    assert place.read("samples/any/id/c/7") == b"shard"
    assert place.size("samples/any/id/c/7") == 5
    assert "samples/any/id/c/7" in place.keys("samples/")
    for elsewhere in (other, pickle.loads(pickle.dumps(place))):
        assert list(elsewhere.keys("")) == ["parts/0"]
        assert not exists(elsewhere, "samples/any/id/c/7")
    place.write("parts/1", b"row")
    assert other.read("parts/1") == b"row"
    assert other.read_ranges("samples/any/id/c/7", [(1, 2), (0, 5)]) == [b"ha", b"shard"]


def test_two_who_begin_the_same_array_both_have_their_chunks_in_it(url: str) -> None:
    one, two = open_place(url), open_place(url)
    for number, place in enumerate((one, two)):
        place.write(f"samples/any/latents/c/{number}/0/0", b"%d" % number)
    one.write("parts/0", b"row")
    two.write("parts/1", b"row")
    found = open_place(url)
    assert [found.read(f"samples/any/latents/c/{number}/0/0") for number in (0, 1)] == [b"0", b"1"]
    assert sorted(found.keys("parts/")) == ["parts/0", "parts/1"]


def test_of_two_who_write_the_same_the_last_is_kept(url: str) -> None:
    one, two = open_place(url), open_place(url)
    for place, data in ((one, b"one"), (two, b"two")):
        place.write("samples/any/id/c/0", data)
    for place, data in ((one, b"one"), (two, b"two")):
        place.write("parts/0", data)
    found = open_place(url)
    assert (found.read("parts/0"), found.read("samples/any/id/c/0")) == (b"two", b"two")


def test_of_many_who_create_a_file_one_succeeds_and_what_the_others_wrote_is_not_seen(url: str) -> None:
    places = [open_place(url) for _ in range(4)]
    places[0].write("parts/plan.json", b"plan")
    for number, place in enumerate(places):
        place.write("index/1/size/c/0", str(number).encode())
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda i: places[i].create("manifest.json", str(i).encode()), range(4)))
    assert made.count(True) == 1
    found = open_place(url)
    assert found.read("manifest.json") == found.read("index/1/size/c/0") == str(made.index(True)).encode()


def test_what_waits_is_cleared_too(local: str) -> None:
    place = open_place(local)
    place.write("parts/0", b"row")
    place.write("samples/any/id/c/0", b"shard")
    place.clear("")
    place.write("parts/1", b"row")
    assert list(open_place(local).keys("")) == ["parts/1"]


# Stores


def test_a_store_in_a_repository_is_the_store_in_a_folder_byte_for_byte(url: str, tmp_path: Path) -> None:
    manifest = write_store(url, samples(), shard_rows=3)
    assert write_store(tmp_path / "folder", samples(), shard_rows=3) == manifest
    assert content(open_place(url)) == content(open_place(tmp_path / "folder"))
    with pytest.raises(DataError, match=f"already something at {re.escape(url)}; a store is never overwritten"):
        write_store(url, samples())


def test_a_store_in_a_repository_is_read_right(url: str) -> None:
    write_store(url, samples(), shard_rows=3)
    order = [*range(0, 12, 2), *range(1, 12, 2)]  # by size
    opened = Store(open_place(url))
    for store in (opened, pickle.loads(pickle.dumps(opened))):
        for start, numbers in ((0, order[:6]), (6, order[6:])):
            asked, shape = range(start, start + 6), (6, *sample(numbers[0]).latents.shape[-3:])
            latents = np.empty(shape, np.float32)
            store.read_into("latents", list(asked), latents)
            assert np.array_equal(latents, np.stack([sample(i).latents.numpy() for i in numbers]))
            assert [record.id for record in store.records(list(asked))] == [f"id{i}" for i in numbers]
            assert [dict(record.captions) for record in store.records(list(asked))] == [
                {"en_original": f"picture {i}"} for i in numbers
            ]


def test_zarr_reads_a_published_store_from_a_session(local: str, tmp_path: Path, icechunk: Any) -> None:
    write_store(local, samples(), shard_rows=4)
    repository = icechunk.Repository.open(icechunk.local_filesystem_storage(str(tmp_path / "s")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the specification of bytes of variable length is not final
        root: Any = zarr.open_group(repository.readonly_session("main").store, mode="r")
        group = root["samples/16x24"]
        assert list(group["id"][:]) == ["id0", "id2", "id4", "id6", "id8", "id10", "", ""]
        for row, i in enumerate(range(0, 12, 2)):
            assert np.array_equal(group["latents"][row], sample(i).latents.numpy())
        assert root["index/1/size"][:].tolist() == [[100 + i, 200] for i in (*range(0, 12, 2), *range(1, 12, 2))]
        assert root["files/manifest.json"][0] == open_place(local).read("manifest.json")
        assert {"samples", "index"} <= set(root.group_keys())


def test_an_open_store_stays_what_it_was(local: str) -> None:
    write_store(local, samples(), shard_rows=3)
    store = Store(open_place(local))
    open_place(local).clear("")
    write_store(local, (sample(i + 50) for i in range(12)), shard_rows=3)
    for each in (store, pickle.loads(pickle.dumps(store))):
        assert each.read_strings("caption_en_original", [0, 7]) == ["picture 0", "picture 3"]
    assert Store(open_place(local)).read_strings("caption_en_original", [0]) == ["picture 50"]


def test_a_chunk_whose_file_is_lost_is_named(local: str, tmp_path: Path) -> None:
    write_store(local, [Sample(sample(0).record, image=os.urandom(1000))])
    store = Store(open_place(local))
    for file in (tmp_path / "s/chunks").iterdir():
        file.unlink()
    with pytest.raises(DamagedSamples, match=r"any/image/c/0"):
        store.read_bytes("image", [0])


# Writers


class Killed(IcechunkPlace):
    """A place whose process is killed when all of a part but its row is written."""

    def write(self, key: str, data: bytes) -> None:
        if key == "parts/16x24-1.json":
            os.kill(os.getpid(), signal.SIGKILL)
        super().write(key, data)


def work(url: str, *numbers: int) -> None:
    """Write parts of a store that was begun, when told to."""
    sink = ZarrStoreSink(Killed(url), shard_rows=3)
    input("ready\n")
    for part in (parts()[number] for number in numbers):
        sink.write(part, [sample(row) for row in part.rows])


def started(url: str, *numbers: int) -> subprocess.Popen[str]:
    code = f"import runpy; runpy.run_path({__file__!r})['work']({url!r}, *{numbers})"
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_processes_write_their_parts_at_once_and_who_is_killed_has_not_written_his(url: str, tmp_path: Path) -> None:
    sink = ZarrStoreSink(open_place(url), shard_rows=3)
    assert sink.missing(parts()) == parts()
    workers = [started(url, 0, 3), started(url, 2, 1)]
    for worker in workers:
        assert worker.stdout is not None and worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for worker in workers:
        worker.communicate(timeout=60)
    assert [worker.returncode for worker in workers] == [0, -signal.SIGKILL]
    assert sink.missing(parts()) == [parts()[1]]
    assert not exists(open_place(url), "samples/16x24/latents/c/1/0/0/0")
    sink.write(parts()[1], [sample(row) for row in parts()[1].rows])
    assert sink.publish(parts()) == 12
    write_store(tmp_path / "stream", samples(), shard_rows=3)
    assert content(open_place(url)) == content(open_place(tmp_path / "stream"))


def test_commits_to_a_folder_at_the_same_moment_are_all_kept(local: str) -> None:
    places = [open_place(local) for _ in range(4)]
    places[0].write("parts/plan.json", b"plan")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: places[i % 4].write(f"parts/{i}", b"row"), range(40)))
    assert len(list(open_place(local).keys("parts/"))) == 41


def test_a_stream_that_fails_leaves_nothing(url: str) -> None:
    def stopped() -> Iterator[Sample]:
        yield from samples(4)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_store(url, stopped(), shard_rows=2)
    assert list(open_place(url).keys("")) == []


# What goes wrong


def test_an_installation_without_icechunk_is_told_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "icechunk", None)
    with pytest.raises(MissingDependency, match=r"'icechunk\+file:///s on Python 3.12 or newer' needs .*\[icechunk\]"):
        open_place("icechunk+file:///s")


@pytest.mark.parametrize("where", ["s3://bucket", "s3:///prefix", "file://relative", "gs://bucket/prefix"])
def test_a_url_of_no_repository_is_refused(where: str, icechunk: Any) -> None:
    with pytest.raises(DataError, match=r"is no place for Icechunk: use icechunk\+file:///path or icechunk\+s3://"):
        open_place(f"icechunk+{where}")


def test_what_is_no_repository_is_not_read_and_not_written_into(local: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"there is no store at {re.escape(local)}"):
        Store(open_place(local))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "s").mkdir()
    (tmp_path / "s/own").write_text("mine")
    with pytest.raises(RunError, match=f"{re.escape(local)} could not be written: .*; nothing was left"):
        write_store(local, samples())
    assert [file.name for file in (tmp_path / "s").iterdir()] == ["own"]


def test_a_full_disk_is_an_error_that_leaves_nothing(local: str) -> None:
    place = open_place(local)
    place.write("parts/x", b"x")
    place.clear("")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, hard))  # no file may grow beyond: the write fails half way
    try:
        with pytest.raises(RunError, match=r"could not be written: a file grew too large .*nothing was left"):
            write_store(place, [Sample(sample(0).record, image=os.urandom(1 << 20))])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(place.keys("")) == []


def test_a_bucket_that_does_not_exist_is_named(icechunk: Any, bucket: str) -> None:
    with pytest.raises(RunError, match=r"icechunk\+s3://none/s could not be written: .*NoSuchBucket"):
        write_store("icechunk+s3://none/s", samples())


def test_credentials_that_the_server_refuses_are_an_error(icechunk: Any, bucket: str, server: str) -> None:
    place = open_place(f"icechunk+{bucket}")
    S3.ask(f"{server}/moto-api/reset-auth", "POST", b"0")  # from now on it looks at them
    try:
        with pytest.raises(PermissionError, match="InvalidAccessKeyId"):
            place.read("manifest.json")
    finally:
        S3.ask(f"{server}/moto-api/reset-auth", "POST", b"1000000")
