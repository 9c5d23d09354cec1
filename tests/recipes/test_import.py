"""An import as a user runs it: a file, the command, and what becomes of it when something is killed."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from kolors_zarr.config import ZarrSource
from kolors_zarr.store.places import Folder
from kolors_zarr.store.reading import Store
from PIL import Image

from kolors_kernel import BuildContext
from kolors_kernel.cli import main

BUCKETS = {"type": "sizes", "table": [[16, 16], [16, 32], [32, 16]]}
KILLED = Path(__file__).with_name("run_until_killed.py")


def pictures(count: int) -> dict[str, bytes]:
    """Pictures of three aspects in three formats; the fifth is damaged."""
    made = {}
    for i in range(count):
        width, height = ((20, 20), (50, 25), (30, 60))[i % 3]
        kind = ("PNG", "JPEG", "WEBP")[i % 3]
        pixels = np.random.default_rng(i).integers(0, 256, (height, width, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind)
        made[f"{i:03}.{kind.lower()}"] = file.getvalue()[: 300 if i == 4 else None]
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty pictures with captions beside them."""
    path = tmp_path / "pictures"
    path.mkdir()
    for name, data in pictures(20).items():
        (path / name).write_bytes(data)
        (path / f"{name[:3]}.txt").write_text(f"第{int(name[:3])}张", encoding="utf-8")
    return path


def recipe(file: Path, **settings: Any) -> Path:
    written = {"type": "import_samples", "buckets": BUCKETS, "shard": 2, **settings}
    file.write_text(yaml.safe_dump(written), encoding="utf-8")
    return file


def tree(path: Path) -> dict[str, bytes]:
    return {each.relative_to(path).as_posix(): each.read_bytes() for each in path.rglob("*") if each.is_file()}


def tar(path: Path) -> None:
    with tarfile.open(path, "w") as made:
        for i, (name, data) in enumerate(pictures(20).items()):
            for ending, content in ((name[3:], data), (".txt", f"第{i}张".encode())):
                info = tarfile.TarInfo(f"{i:03}{ending}")
                info.size = len(content)
                made.addfile(info, io.BytesIO(content))


def parquet(path: Path) -> None:
    made = pictures(20)
    cells = [{"bytes": data, "path": name} for name, data in made.items()]
    table = pa.table({"image": cells, "caption": [f"第{i}张" for i in range(20)], "key": list(made)})
    pq.write_table(table, path, row_group_size=6)


def listing(path: Path) -> None:
    rows = [f"{name},第{i}张\n" for i, name in enumerate(pictures(20))]
    path.write_text("".join(["file,text\n", *rows]), encoding="utf-8")


SOURCES: list[tuple[dict[str, Any], Callable[[Path], None], Callable[[str], str]]] = [
    ({"type": "image_folder", "path": "pictures", "captions": {"zh_original": ".txt"}}, lambda _: None, str),
    (
        {"type": "webdataset", "path": "all.tar", "captions": {"zh_original": ".txt"}},
        tar,
        lambda name: f"all.tar/{name[:3]}",
    ),
    (
        {"type": "parquet", "path": "all.parquet", "captions": {"zh_original": "caption"}, "id": "key"},
        parquet,
        str,
    ),
    (
        {"type": "listing", "path": "pictures/all.csv", "captions": {"zh_original": "text"}, "image": "file"},
        listing,
        str,
    ),
]


@pytest.mark.parametrize(("data", "prepare", "id_of"), SOURCES, ids=[data["type"] for data, _, _ in SOURCES])
def test_the_command_imports_from_every_kind_of_place(
    tmp_path: Path,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    data: dict[str, Any],
    prepare: Callable[[Path], None],
    id_of: Callable[[str], str],
) -> None:
    prepare(tmp_path / data["path"])
    file = recipe(tmp_path / "import.yaml", data=data | {"constant_tags": {"source": "test"}})
    assert main(["run", str(file), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "samples by bucket: 16x16 7, 16x32 6, 32x16 6" in said
    assert "samples by caption: zh_original 19, none at all 0" in said
    assert "1 inputs were refused" in said
    assert "samples: 19\nrefused: 1\nwithout_caption: 0\n" in said
    store = Store(Folder(tmp_path / "out/store.zarr"))
    numbers = range(store.samples)
    found = dict(zip(store.read_strings("id", numbers), store.read_bytes("image", numbers), strict=True))
    made = pictures(20)
    damaged = id_of(list(made)[4])
    assert found == {id_of(name): data for name, data in made.items() if id_of(name) != damaged}
    assert {record.captions["zh_original"] for record in store.records(numbers)} == {
        f"第{i}张" for i in range(20) if i != 4
    }
    assert {dict(record.tags)["source"] for record in store.records(numbers)} == {"test"}
    (line,) = (tmp_path / "out/store.zarr/refused.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["input"] == damaged


@pytest.mark.parametrize("keep", ["encoded", "pixels"])
def test_what_is_imported_can_be_trained_on(tmp_path: Path, folder: Path, keep: str) -> None:
    data = {"type": "image_folder", "path": "pictures", "captions": {"zh_original": ".txt"}}
    file = recipe(tmp_path / "import.yaml", data=data, keep=keep)
    assert main(["run", str(file), "--out", str(tmp_path / "out")]) == 0
    source = {"type": "zarr", "path": str(tmp_path / "out/store.zarr"), "buckets": BUCKETS, "batch": 4}
    batches = list(ZarrSource.model_validate(source).build(BuildContext()).batches(seed=0, epoch=0))
    seen = [
        record.id for batch in batches for record, weight in zip(batch.records, batch.weight, strict=True) if weight
    ]
    assert sorted(seen) == sorted(name for i, name in enumerate(pictures(20)) if i != 4)
    for batch in batches:
        assert batch.images is not None
        (size,) = {tuple(row[4:].tolist()) for row in batch.size}
        assert batch.images.shape == (4, 3, *size)
        for record in batch.records:
            height, width = record.size
            assert (height > width, height < width) == (size[0] > size[1], size[0] < size[1])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": {"type": "image_folder", "path": "nowhere"}}, "data.path: there is no file or folder"),
        ({"data": {"type": "image_folder", "path": ".", "captions": {"de": ".txt"}}}, "'zh_original', 'en_original'"),
        ({"data": {"type": "image_floder", "path": "."}}, "did you mean 'image_folder'?"),
        ({"data": {"type": "image_folder", "path": "empty"}}, "there is no picture in"),
        ({"data": {"type": "webdataset", "path": "empty"}}, "there is no .tar file in"),
        ({"path": "nothing://x/y"}, "nothing://"),
        ({"shard": 0}, "shard: Input should be greater than 0"),
    ],
)
def test_a_recipe_that_cannot_be_run_is_one_clear_line(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], said: str
) -> None:
    (tmp_path / "empty").mkdir()
    file = recipe(tmp_path / "import.yaml", **{"data": {"type": "image_folder", "path": "pictures"}, **change})
    assert main(["run", str(file), "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out/store.zarr").exists()


def start(file: Path, out: Path, *changes: str, killed_after: int | None = None) -> subprocess.Popen[str]:
    program = ["-m", "kolors_kernel"] if killed_after is None else [str(KILLED), str(killed_after)]
    command = [sys.executable, *program, "run", str(file), "--out", str(out), *changes]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture
def whole(tmp_path: Path, folder: Path) -> tuple[Path, dict[str, bytes]]:
    """The file of a recipe and what it makes when nothing is in the way."""
    file = recipe(tmp_path / "import.yaml", data={"type": "image_folder", "path": "pictures"})
    assert main(["run", str(file), "--out", str(tmp_path / "whole")]) == 0
    return file, tree(tmp_path / "whole/store.zarr")


@pytest.mark.parametrize(
    ("writes", "finished"), [((0, 8, 33), [0, 1, 7]), ((60,), [11])], ids=["scan and parts", "publishing"]
)
def test_a_run_that_is_killed_goes_on_to_the_very_same_store(
    tmp_path: Path, whole: tuple[Path, dict[str, bytes]], writes: tuple[int, ...], finished: list[int]
) -> None:
    file, wanted = whole
    out, found = tmp_path / "out", []
    for most in writes:  # each run writes so many files and is killed at the next
        run = start(file, out, killed_after=most)
        said, _ = run.communicate(timeout=60)
        assert run.returncode == -signal.SIGKILL, said
        assert not (out / "store.zarr/manifest.json").exists()
        found.append(len(list(out.glob("store.zarr/parts/*-*.json"))))
    assert found == finished
    run = start(file, out)
    said, _ = run.communicate(timeout=60)
    assert run.returncode == 0, said
    assert f"{finished[-1]} of 11 parts were written before" in said
    assert tree(out / "store.zarr") == wanted
    assert sorted(each.name for each in out.iterdir()) == ["recipe.yaml", "store.zarr"]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the worker through /proc")
def test_a_worker_that_is_killed_costs_its_shard_only(tmp_path: Path, whole: tuple[Path, dict[str, bytes]]) -> None:
    file, wanted = whole
    run = start(file, tmp_path / "out", "--set", "workers.count=2")
    assert run.stdout is not None
    killed = False
    while run.poll() is None and not killed:
        if list((tmp_path / "out").glob("store.zarr/parts/*-*.json")):
            for child in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split():
                if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                    os.kill(int(child), signal.SIGKILL)
                    killed = True
                    break
        time.sleep(0.001)
    said, _ = run.communicate(timeout=60)
    assert run.returncode == 0, said
    assert killed
    assert tree(tmp_path / "out/store.zarr") == wanted
