"""A store in an object store: a real server, started on loopback in a process of its own."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import torch
import zarr
from kolors_zarr.store.manifest import Manifest
from kolors_zarr.store.places import Place, exists, open_place
from kolors_zarr.store.sink import ZarrStoreSink
from kolors_zarr.store.writing import write_store
from zarr.storage import ObjectStore

from kolors_kernel.errors import DataError, RunError
from kolors_kernel.values import NO_CAPTION, Conditioning, Part, Sample, SampleRecord

obstore = pytest.importorskip("obstore", reason="needs obstore, of the extra 'remote'")
pytest.importorskip("moto.server", reason="needs the S3 server of moto: pip install 'moto[server]'")

PUBLIC = {"Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": "arn:aws:s3:::bucket/*"}
KEYS = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}


def ask(url: str, method: str, data: bytes = b"") -> None:
    request = urllib.request.Request(url, data=data, method=method, headers={"Content-Type": "text/plain"})
    urllib.request.urlopen(request, timeout=10).close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the URL of a server that has a bucket called "bucket"."""
    log = tmp_path_factory.mktemp("moto") / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"], stdout=file, stderr=file
        )
    try:
        url = started(process, log)
        ask(f"{url}/bucket", "PUT")
        yield url
    finally:
        process.kill()
        process.wait()


def started(process: subprocess.Popen[bytes], log: Path) -> str:
    """Wait for the server to say which port it got, and return its URL."""
    for _ in range(600):
        said = log.read_text()
        if "Running on " in said:
            return said.split("Running on ")[1].split()[0]
        assert process.poll() is None, said
        time.sleep(0.1)
    raise AssertionError(f"the server does not start: {log.read_text()}")


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the URL of a new place in the bucket, for which the environment has what is needed."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": server}.items():
        monkeypatch.setenv(name, value)
    return f"s3://bucket/{uuid4().hex}"


def sample(i: int) -> Sample:
    size = ((16, 24), (24, 16))[i % 2]
    generator = torch.Generator().manual_seed(i)
    texts = {
        key: Conditioning(torch.randn(1, 3, 4, generator=generator), torch.randn(1, 2, generator=generator))
        for key in ("en_original", NO_CAPTION)
    }
    record = SampleRecord(f"id{i}", (100 + i, 200), {"en_original": f"picture {i}"}, {"split": "train"})
    latents = torch.randn(4, size[0] // 8, size[1] // 8, generator=generator)
    return Sample(record, latents=latents, conditioning=texts, size=(100 + i, 200, 0, 0, *size))


def parts() -> list[Part]:
    return [
        Part(f"{size[0]} {start}", size, range(start, 12, 2)[:3])
        for size, first in (((16, 24), 0), ((24, 16), 1))
        for start in (first, first + 6)
    ]


def objects(place: Place) -> dict[str, bytes]:
    return {key: place.read(key) for key in place.keys("")}


def test_a_store_in_a_bucket_is_the_store_in_a_folder_byte_for_byte(bucket: str, tmp_path: Path) -> None:
    manifest = write_store(bucket, (sample(i) for i in range(12)), shard_rows=3)
    assert manifest.samples == 12
    write_store(tmp_path / "s", (sample(i) for i in range(12)), shard_rows=3)
    found = objects(open_place(bucket))
    assert found == objects(open_place(tmp_path / "s"))
    assert Manifest.from_bytes(found["manifest.json"], where=bucket) == manifest


def test_zarr_reads_a_store_in_a_bucket(bucket: str) -> None:
    write_store(bucket, (sample(i) for i in range(12)), shard_rows=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options: Any = {"allow_http": True}
        store = ObjectStore(obstore.store.from_url(bucket, client_options=options), read_only=True)
        group: Any = zarr.open_group(store, mode="r")["samples/16x24"]
        assert list(group["id"][:]) == ["id0", "id2", "id4", "id6", "id8", "id10", "", ""]
        for row, i in enumerate(range(0, 12, 2)):
            assert torch.equal(torch.from_numpy(group["latents"][row]), sample(i).latents)  # type: ignore[arg-type]


def test_processes_write_their_parts_and_one_publishes(bucket: str) -> None:
    sink = ZarrStoreSink(open_place(bucket), shard_rows=3)
    assert sink.missing(parts()) == parts()
    sink.write(parts()[2], (sample(row) for row in parts()[2].rows))
    again = ZarrStoreSink(open_place(bucket), shard_rows=3)
    missing = again.missing(parts())
    assert missing == [part for part in parts() if part != parts()[2]]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda part: again.write(part, [sample(row) for row in part.rows]), missing))
    assert again.publish(parts()) == 12
    assert not any(key.startswith("parts/") for key in open_place(bucket).keys(""))
    with pytest.raises(DataError, match=f"already something at {bucket}; a store is never overwritten"):
        sink.missing(parts())


def test_the_server_lets_one_of_many_create_an_object(bucket: str) -> None:
    place = open_place(bucket)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda i: place.create("manifest.json", str(i).encode()), range(16)))
    assert made.count(True) == 1
    assert place.read("manifest.json") == str(made.index(True)).encode()


def test_large_objects_come_back_whole_and_in_ranges(bucket: str) -> None:
    place, data = open_place(bucket), os.urandom(11 << 20)  # more than one upload takes
    place.write("a/b", data)
    copy = pickle.loads(pickle.dumps(place))
    assert copy.size("a/b") == len(data)
    assert copy.read("a/b") == data
    ranges = [(10_000_000, 1000), (0, 1), (500, 12)]
    assert copy.read_ranges("a/b", ranges) == [data[start : start + length] for start, length in ranges]


def test_keys_below_a_folder_are_those_of_no_other(bucket: str) -> None:
    place = open_place(bucket)
    for key in ("a/1", "a/b/2", "ab/3", "风格"):
        place.write(key, b"x")
    assert sorted(place.keys("a/")) == ["a/1", "a/b/2"]
    assert sorted(place.keys("")) == ["a/1", "a/b/2", "ab/3", "风格"]
    place.clear("a/")
    assert sorted(place.keys("")) == ["ab/3", "风格"]
    for call in (place.read, place.size, lambda key: place.read_ranges(key, [(0, 1)])):
        with pytest.raises(FileNotFoundError, match=f"{bucket}/a/1"):
            call("a/1")


def test_what_fails_leaves_nothing_in_the_bucket(bucket: str) -> None:
    def stopped() -> Iterator[Sample]:
        yield from (sample(i) for i in range(4))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_store(bucket, stopped(), shard_rows=2)
    assert list(open_place(bucket).keys("")) == []


def test_a_published_store_is_read_from_a_web_server(bucket: str, server: str) -> None:
    write_store(bucket, (sample(i) for i in range(3)))
    ask(f"{server}/bucket?policy", "PUT", json.dumps({"Version": "2012-10-17", "Statement": [PUBLIC]}).encode())
    web = open_place(f"{server}/{bucket.removeprefix('s3://')}")
    place = open_place(bucket)
    assert web.read("manifest.json") == place.read("manifest.json")
    key = "samples/16x24/latents/c/0/0/0/0"
    assert web.size(key) == place.size(key)
    assert web.read_ranges(key, [(7, 9), (0, 2)]) == place.read_ranges(key, [(7, 9), (0, 2)])
    assert not exists(web, "samples/none")


def test_a_bucket_that_does_not_exist_is_named_at_once(bucket: str) -> None:
    with pytest.raises(RunError, match=r"the store s3://none/s could not be written: .*the bucket does not exist"):
        write_store("s3://none/s", [sample(0)])
    with pytest.raises(RunError, match=r"s3://none/s could not be written: .*the bucket does not exist"):
        ZarrStoreSink(open_place("s3://none/s"), shard_rows=3).missing(parts())
    with pytest.raises(FileNotFoundError, match="the bucket does not exist"):
        open_place("s3://none/s").read("manifest.json")


def test_credentials_that_the_server_refuses_are_an_error_at_once(bucket: str, server: str) -> None:
    ask(f"{server}/moto-api/reset-auth", "POST", b"0")  # from now on it looks at them
    try:
        with pytest.raises(
            RunError, match=f"{bucket} could not be written: .*the server refuses access; credentials come from"
        ):
            write_store(bucket, [sample(0)])
        with pytest.raises(PermissionError, match="the server refuses access"):
            open_place(bucket).read("manifest.json")
    finally:
        ask(f"{server}/moto-api/reset-auth", "POST", b"1000000")


def test_a_server_that_is_not_there_is_an_error_soon(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(RunError, match=f"{bucket} could not be written: .*127.0.0.1:1"):
        write_store(bucket, [sample(0)])
