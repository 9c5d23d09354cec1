"""What the pages about stores say is so: the bytes, the reader, the commands."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from kolors_zarr.store.places import Folder
from kolors_zarr.store.reading import Store
from kolors_zarr.store.writing import write_store
from PIL import Image

from kolors_kernel import cli, load_recipe
from kolors_kernel.values import NO_CAPTION, Conditioning, Sample, SampleRecord

DOCS = Path(__file__).resolve().parents[2] / "docs"


def fenced(page: str, language: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [block for name, block in found if name == language]


def bytes_of(block: str) -> bytes:
    """The bytes of lines such as `0b  fb b8   what they are`, which must stand where the line says."""
    data = b""
    for line in block.splitlines():
        found = re.fullmatch(r"([0-9a-f]{2})  ((?:[0-9a-f]{2} ?)+)(?: +\S.*)?", line)
        assert found is not None, line
        assert int(found[1], 16) == len(data)
        data += bytes.fromhex(found[2])
    return data


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of the page's example."""
    path = tmp_path_factory.mktemp("example") / "store"
    red: dict[str, Any] = {"captions": {"en_original": "red"}, "tags": {"level": "5"}}
    records = [
        SampleRecord("a", (600, 800), **red),
        SampleRecord("b", (600, 800), {}),
        SampleRecord("c", (480, 640), **red),
    ]
    write_store(path, (Sample(record, image=b"a picture") for record in records), shard_rows=4)
    return path


def test_the_example_is_what_the_writer_makes(example: Path) -> None:
    dumps = [block for block in fenced("store.md", "text") if block.startswith("00  ")]
    keys = [
        "samples/any/caption_en_original/c/0",
        "index/1/captions/c/0",
        "index/1/object_caption_en_original/c/0/0",
    ]
    assert [bytes_of(block) for block in dumps] == [(example / key).read_bytes() for key in keys]
    (shown,), written = fenced("store.md", "json"), json.loads((example / "manifest.json").read_text())
    assert {**json.loads(shown), "written_by": 0, "crc32c": 0} == {**written, "written_by": 0, "crc32c": 0}


def test_the_checksum_of_the_manifest_that_is_shown_is_right() -> None:
    manifest = json.loads(fenced("store.md", "json")[0])
    crc32c, sealed = reader()["crc32c"], {key: value for key, value in manifest.items() if key != "crc32c"}
    assert crc32c(json.dumps(sealed, sort_keys=True, separators=(",", ":")).encode()) == manifest["crc32c"]


def reader() -> dict[str, Any]:
    (program,) = fenced("store.md", "python")
    names: dict[str, Any] = {}
    exec(compile(program, "docs/store.md", "exec"), names)
    return names


def full_samples() -> Iterator[Sample]:
    for i in range(9):
        size = ((16, 24), (24, 16))[i % 2]
        captions = {"zh_original": f"第{i}张图"} | ({"en_synthetic": f"A picture of {i}."} if i % 3 else {})
        generator = torch.Generator().manual_seed(i)
        text = {
            key: Conditioning(torch.randn(1, 3, 4, generator=generator), torch.randn(1, 2, generator=generator))
            for key in (*captions, NO_CAPTION)
        }
        latents = torch.randn(4, size[0] // 8, size[1] // 8, generator=generator).half()
        record = SampleRecord(f"id {i}", (100 + i, 90), captions, {"level": str(i), "风格": "扁平"})
        yield Sample(record, image=bytes(i), latents=latents, conditioning=text, size=(100 + i, 90, 1, 2, *size))


def test_the_reader_of_the_page_reads_what_ours_does(tmp_path: Path) -> None:
    write_store(tmp_path / "store", full_samples(), shard_rows=4)
    store, samples = Store(Folder(tmp_path / "store")), reader()["samples"]
    found = list(samples(tmp_path / "store"))
    assert len(found) == store.samples == 9
    written = {each.record.id: each for each in full_samples()}
    for number, sample in enumerate(found):
        wanted = written[sample["id"].decode()]
        record = wanted.record
        assert sample["size"] == record.size and json.loads(sample["tags"]) == record.tags
        captions = {key.removeprefix("caption_"): sample[key].decode() for key in sample if key.startswith("caption_")}
        assert captions == record.captions
        assert sample["image"] == wanted.image
        assert wanted.latents is not None and sample["latents"] == wanted.latents.numpy().tobytes()
        texts = {key.removeprefix("text_"): sample[key] for key in sample if key.startswith("text_")}
        assert texts.keys() == wanted.conditioning.keys()
        for key, text in texts.items():
            tokens, pooled = wanted.conditioning[key].tokens, wanted.conditioning[key].pooled
            assert text == tokens.numpy().tobytes() + pooled.numpy().tobytes() + bytes(3 * 4)
            assert text == store.read_bytes(f"text_{key}", [number])[0]


def turned(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def reworded(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / "samples/any/image/c/0").unlink(),
        lambda path: turned(path / "samples/any/image/c/0", 12),
        lambda path: turned(path / "samples/any/image/c/0", -10),
        lambda path: turned(path / "index/1/captions/c/0", 0),
        lambda path: reworded(path / "manifest.json", "level", "lavel"),
        lambda path: reworded(path / "manifest.json", '"version":2', '"version":3'),
        lambda path: shutil.copy(path / "samples/any/id/c/0", path / "samples/any/image/c/0"),
    ],
)
def test_the_reader_of_the_page_trusts_nothing_that_is_damaged(
    example: Path, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    path, samples = shutil.copytree(example, tmp_path / "store"), reader()["samples"]
    assert [sample["id"] for sample in samples(path)] == [b"a", b"b", b"c"]
    damage(path)
    with pytest.raises((ValueError, FileNotFoundError)):
        list(samples(path))


@pytest.fixture
def guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the guide begins with, pictures in every form, and its recipes under the names they have."""
    parquet, datasets = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    rows: list[dict[str, Any]] = []
    for folder in ("photos/circles", "tars", "tables"):
        Path(folder).mkdir(parents=True)
    for i in range(9):
        path = Path("photos/circles") / f"{i:05}.png"
        Image.new("RGB", ((70, 70), (90, 64), (64, 90))[i % 3], (9 * i, 99, 250)).save(path)
        path.with_suffix(".txt").write_text(f"a circle {i}")
        beside = {"caption_zh": f"圆{i}", "rewritten": f"Circle {i}.", "level": 5 - i % 2, "licence": "CC0-1.0"}
        path.with_suffix(".json").write_text(json.dumps(beside))
        rows.append({"image": {"bytes": path.read_bytes(), "path": None}, "text": f"a circle {i}", "key": f"k{i}"})
    Image.new("RGB", (20, 900)).save("photos/circles/sliver.png")
    with tarfile.open("tars/0.tar", "w") as tar:
        for path in sorted(Path("photos/circles").glob("0*")):
            tar.add(path, path.name)
    table = datasets.Dataset.from_list(rows)
    table.save_to_disk("saved")
    parquet.write_table(table.data.table, "tables/0.parquet")
    with open("photos/listing.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["file", "english", "chinese"], ["circles/00000.png", "a circle", "圆"]])
    for block in fenced("data.md", "yml"):
        name = re.match(r"# (\w+\.yaml)\n", block)
        assert name is not None, block
        Path(name[1]).write_text(block, encoding="utf-8")
    return tmp_path


def commands() -> list[list[str]]:
    """The command lines of the guide, without the program."""
    lines = [line for block in fenced("data.md", "") for line in block.splitlines()]
    found = [re.search(r"kolors (run .*)", line) for line in lines]
    return [shlex.split(each[1], comments=True) for each in found if each]


def test_the_guide_imports_and_looks_as_it_says(guide: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(commands()[0]) == 0
    assert capsys.readouterr().out.count("pictures with a side below 64 are refused (min_side)") == 1
    for name, samples in (("webdataset", 9), ("parquet", 9), ("hugging_face", 9), ("listing", 1)):
        assert cli.main(["run", f"{name}.yaml", "--out", f"runs/{name}"]) == 0
        assert f"samples: {samples}\n" in capsys.readouterr().out
    ours = [words for words in commands() if words[1] in ("inspect_store", "verify_store") and "s3:" not in str(words)]
    assert len(ours) == 3
    for words in ours:
        assert cli.main(words) == (2 if "buckets.min_side=600" in words else 0)  # which none of these pictures has
    (program,) = fenced("data.md", "python")
    exec(compile(program, "docs/data.md", "exec"), {})
    assert "circles/0000" in capsys.readouterr().out


def test_every_recipe_of_the_guide_is_valid_with_what_its_commands_set(guide: Path) -> None:
    assert cli.main(commands()[0]) == 0
    shutil.copytree("runs/import/store.zarr", "runs/latents/store.zarr")
    for words in commands():
        options = cli._parser().parse_args(words)
        load_recipe(options.recipe, dict(cli.parse_setting(text) for text in options.set)).graphs()
