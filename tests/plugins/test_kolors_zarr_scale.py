"""What opening a large store costs. `pytest -s` shows the seconds, which no test asserts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from google_crc32c import value as crc32c
from kolors_zarr.store.documents import samples_document
from kolors_zarr.store.layout import INDEX_CHUNK, column_key, shard_key
from kolors_zarr.store.manifest import Column, Group, Manifest
from kolors_zarr.store.shard import encode_element, encode_shard, index_checksum

ROWS = 256
MOST_MEGABYTES = 300
PROGRAM = """
import json, random, sys
from time import perf_counter, process_time
start = perf_counter()
from kolors_zarr.store.places import open_place
from kolors_zarr.store.reading import Store
imported = perf_counter()
store = Store(open_place(sys.argv[1]))
opened = perf_counter()
number, low, high = map(int, sys.argv[2:])
record = store.records([number])[0]
sought = perf_counter()
for _ in range(10):
    some = random.choices(range(low, high), k=32)
    for column in ("size", "crop", "captions"):
        store.rows(column, some)
ten_batches = perf_counter()
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
seconds = {"imports": imported - start, "open": opened - imported, "seek": sought - opened,
           "ten_batches": ten_batches - sought, "cpu": process_time()}
megabytes = {"peak": int(peak.split()[1]) / 1024, "index_at_most": store.most_index_bytes / 2**20}
print(json.dumps({"id": record.id, "samples": store.samples, "seconds": seconds, "megabytes": megabytes}))
"""


def write_chunks(path: Path, column: str, rows: np.ndarray, *, chunks: range) -> None:
    """Write the same chunk of an index column so many times, as one file with many names."""
    folder = path / "index/1" / column / "c"
    data = rows.tobytes()
    first: Path | None = None
    for chunk in chunks:
        file = folder / str(chunk) / "0" if rows.ndim == 2 else folder / str(chunk)
        file.parent.mkdir(parents=True, exist_ok=True)
        if first is None:
            file.write_bytes(data + crc32c(data).to_bytes(4, "little"))
            first = file
        else:
            os.link(first, file)


def write_large_store(path: Path, *, shards: int, groups: int, number: int, everywhere: bool) -> None:
    """Write the index of a store of full shards, and of its samples the ids in the shard of `number`.

    The index has the rows of all samples, or only those about `number`.
    """
    shape = Column(kind="array", dtype="float16", shape=(4, 128, 128))
    columns = {"id": Column(kind="string"), "tags": Column(kind="string"), "latents": shape}
    cuts = [shards * i // groups for i in range(groups + 1)]
    bounds = list(pairwise(cuts))
    manifest = Manifest(
        edition=1,
        shard_rows=ROWS,
        groups=tuple(
            Group(name=f"{64 * (i + 1)}x1024", samples=(stop - start) * ROWS, shards=stop - start, columns=columns)
            for i, (start, stop) in enumerate(bounds)
        ),
        captions=("zh_original", "en_synthetic"),
    )
    path.mkdir()
    (path / "manifest.json").write_bytes(manifest.to_bytes())
    pieces = range(-(-shards // INDEX_CHUNK))
    write_chunks(path, "count", np.full(min(shards, INDEX_CHUNK), ROWS, np.uint32), chunks=pieces)
    samples = manifest.samples
    here = number // INDEX_CHUNK
    wanted = range(-(-samples // INDEX_CHUNK)) if everywhere else range(here, here + 1)
    for name, row in (("size", (2,)), ("crop", (4,)), ("captions", ())):
        write_chunks(path, name, np.zeros((min(samples, INDEX_CHUNK), *row), np.uint16), chunks=wanted)
    shard = number // ROWS
    group = next(i for i, (start, stop) in enumerate(bounds) if start <= shard < stop)
    first = shard * ROWS
    data = encode_shard([encode_element(f"id{i}".encode()) for i in range(first, first + ROWS)], ROWS)
    name = manifest.groups[group].name
    file = path / shard_key(name, "id", shard - cuts[group], axes=1)
    file.parent.mkdir(parents=True)
    file.write_bytes(data)
    document = samples_document(columns["id"], shards=manifest.groups[group].shards, shard_rows=ROWS)
    (path / column_key(name, "id") / "zarr.json").write_bytes(document)
    table = np.zeros((min(shards, INDEX_CHUNK), 3), np.uint32)
    table[shard % INDEX_CHUNK] = len(data), 0, index_checksum(data)
    write_chunks(path, "object_id", table, chunks=range(shard // INDEX_CHUNK, shard // INDEX_CHUNK + 1))


@pytest.mark.parametrize(
    ("shards", "groups", "everywhere"),
    [pytest.param(39_063, 40, True, id="10 M samples"), pytest.param(10_000_000, 40, False, id="10 M shards")],
)
def test_opening_and_seeking_takes_little_memory(tmp_path: Path, shards: int, groups: int, everywhere: bool) -> None:
    number = shards * ROWS * 2 // 3
    path = tmp_path / "large"
    write_large_store(path, shards=shards, groups=groups, number=number, everywhere=everywhere)
    low = number // INDEX_CHUNK * INDEX_CHUNK
    about = (0, shards * ROWS) if everywhere else (low, low + INDEX_CHUNK)
    arguments = [str(path), *map(str, (number, *about))]
    ran = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True)
    found = json.loads(ran.stdout)
    print(json.dumps({**found, "shards": shards}))
    assert found["id"] == f"id{number}"
    assert found["samples"] == shards * ROWS
    assert found["megabytes"]["peak"] < MOST_MEGABYTES
