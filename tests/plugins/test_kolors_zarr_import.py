from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from kolors_zarr.collections.folder import ImageFolder
from kolors_zarr.collections.inputs import Input
from kolors_zarr.importing import scan, steps
from kolors_zarr.importing.job import listed, parts_of
from kolors_zarr.recipes_config import ImportSamples
from kolors_zarr.store.places import Folder, open_place
from kolors_zarr.store.reading import Store
from PIL import Image

from kolors_kernel import BuildContext
from kolors_kernel.errors import DataError, RunError

BUCKETS = {"type": "sizes", "table": [[16, 16], [16, 32], [32, 16]]}


def picture(width: int, height: int, *, seed: int = 0, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(made: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    made.save(file, kind, **options)
    return file.getvalue()


def written(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def recipe(folder: Path, *, data: Mapping[str, Any] | None = None, **settings: Any) -> ImportSamples:
    """An import of a folder; `data` are settings of the folder, the others are the recipe's."""
    source = {"type": "image_folder", "path": str(folder), **(data or {})}
    return ImportSamples.model_validate({"type": "import_samples", "data": source, "buckets": BUCKETS, **settings})


def run(out: Path, folder: Path, **settings: Any) -> Mapping[str, float]:
    return recipe(folder, **settings).build(BuildContext(out=out)).run()


def refused(out: Path) -> dict[str, str]:
    lines = (out / "store.zarr/refused.jsonl").read_text(encoding="utf-8").splitlines()
    return {each["input"]: each["reason"] for each in map(json.loads, lines)}


def stored(out: Path) -> dict[str, bytes]:
    store = Store(Folder(out / "store.zarr"))
    numbers = range(store.samples)
    return dict(zip(store.read_strings("id", numbers), store.read_bytes("image", numbers), strict=True))  # type: ignore[arg-type]


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def folder_of_many(path: Path, count: int = 11) -> Path:
    """Pictures of three aspects, every third without a caption."""
    sides = ((20, 20), (50, 25), (30, 60))
    files: dict[str, bytes | str] = {}
    for i in range(count):
        width, height = sides[i % 3]
        kind = ("PNG", "JPEG", "WEBP", "PNG")[i % 4]
        files[f"{i:03}.{kind.lower()}"] = encoded(picture(width + i % 2, height, seed=i), kind)
        if i % 3:
            files |= {f"{i:03}.txt": f"picture {i}", f"{i:03}.zh.txt": f"第{i}张", f"{i:03}.json": f'{{"level": {i}}}'}
    return written(path, files)


TEXTS = {"captions": {"en_original": ".txt", "zh_synthetic": ".zh.txt"}, "tags": {"level": "level"}}


def test_what_is_imported_is_read_back_as_it_was(tmp_path: Path) -> None:
    folder = folder_of_many(tmp_path / "in")
    figures = run(tmp_path, folder, data=TEXTS | {"constant_tags": {"source": "own"}}, shard=2)
    assert figures == {"samples": 11, "refused": 0, "without_caption": 4}
    assert not (tmp_path / "scan").exists()
    files = {path.name: path for path in folder.iterdir()}
    store = Store(Folder(tmp_path / "store.zarr"))
    records = store.records(range(store.samples))
    pictures = {name for name in files if not name.endswith((".txt", ".json"))}
    assert sorted(record.id for record in records) == sorted(pictures)
    for record, image in zip(records, store.read_bytes("image", range(store.samples)), strict=True):
        assert image == files[record.id].read_bytes()
        with Image.open(files[record.id]) as opened:
            assert record.size == opened.size[::-1]
        number = int(record.id[:3])
        wanted = {"en_original": f"picture {number}", "zh_synthetic": f"第{number}张"} if number % 3 else {}
        assert dict(record.captions) == wanted
        assert dict(record.tags) == {"source": "own", **({"level": str(number)} if number % 3 else {})}
    assert store.manifest.buckets == ((16, 16), (16, 32), (32, 16))


@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
def test_zarr_itself_reads_each_bucket_with_the_pictures_whose_aspect_is_nearest(tmp_path: Path) -> None:
    folder = folder_of_many(tmp_path / "in")
    run(tmp_path, folder, data=TEXTS, shard=4)
    root = zarr.open_group(tmp_path / "store.zarr", mode="r")
    found = {}
    for group, aspect in (("16x16", 0), ("16x32", 1), ("32x16", 2)):
        numbers = [i for i in range(11) if i % 3 == aspect]
        ids = [text for text in root[f"samples/{group}/id"][:].tolist() if text]  # type: ignore[index, union-attr]
        assert [int(each[:3]) for each in ids] == numbers
        images = root[f"samples/{group}/image"][: len(ids)]  # type: ignore[index]
        found |= dict(zip(ids, images, strict=True))  # type: ignore[arg-type]
    assert found == {name: data for name, data in tree(folder).items() if not name.endswith((".txt", ".json"))}


def test_pixels_are_the_middle_of_the_picture_at_its_bucket(tmp_path: Path) -> None:
    exact, wide = picture(32, 16), picture(80, 20, seed=1)
    turned = Image.Exif()
    turned[0x0112] = 6  # seen, the top of the stored picture is at the right
    files = {"exact.png": encoded(exact), "turned.png": encoded(exact, exif=turned), "wide.png": encoded(wide)}
    run(tmp_path, written(tmp_path / "in", files), keep="pixels")
    store = Store(Folder(tmp_path / "store.zarr"))
    assert store.read_strings("id", range(3)) == ["exact.png", "wide.png", "turned.png"]
    landscapes, portrait = np.empty((2, 16, 32, 3), np.uint8), np.empty((1, 32, 16, 3), np.uint8)
    store.read_into("pixels", [0, 1], landscapes)
    store.read_into("pixels", [2], portrait)
    assert np.array_equal(landscapes[0], np.asarray(exact))
    assert np.array_equal(portrait[0], np.rot90(np.asarray(exact), -1))
    middle = wide.resize((32, 16), Image.Resampling.LANCZOS, box=(20, 0, 60, 20))
    assert np.abs(landscapes[1].astype(int) - np.asarray(middle)).max() <= 1
    assert store.rows("size", range(3)).tolist() == [[16, 32], [20, 80], [32, 16]]
    assert store.rows("crop", range(3)).tolist() == [[0, 0, 16, 32], [0, 16, 16, 32], [0, 0, 32, 16]]


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def bomb() -> bytes:
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(1000))), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_what_cannot_be_used_is_refused_by_name_and_reason_and_the_rest_is_imported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frames = [picture(20, 20, seed=seed) for seed in range(2)]
    jpeg, png = encoded(frames[0], "JPEG"), encoded(frames[0])
    bad: dict[str, tuple[bytes, str]] = {
        "animated.gif": (encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), "animated, with 2 frames"),
        "animated.webp": (encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]), "animated"),
        "bomb.png": (bomb(), "100000 x 100000 pixels"),
        "deep.png": (encoded(Image.fromarray(np.zeros((20, 20), np.uint16))), "more than 8 bits"),
        "empty.jpg": (b"", "the file is empty"),
        "flipped.png": (png[:200] + bytes([png[200] ^ 255]) + png[201:], "cannot be decoded"),
        "long.png": (encoded(picture(2, 70_000)), "70000 x 2 pixels, and a store keeps sides of at most 65535"),
        "small.png": (encoded(picture(7, 20)), "a side below 8"),
        "text.jpg": (b"this is no picture", "neither JPEG nor PNG"),
        "tiff.tif": (encoded(frames[0], "TIFF"), "neither JPEG nor PNG"),
        "truncated.jpg": (jpeg[: len(jpeg) // 2], "cannot be decoded"),
        "truncated.png": (png[: len(png) // 2], "cannot be decoded"),
        "truncated_in_the_header.jpg": (jpeg[:20], "cannot be decoded"),
        "wide.png": (encoded(picture(200, 10)), "cut away more than 50.0%"),
    }
    good = {
        "cmyk.jpg": encoded(picture(20, 20, mode="CMYK"), "JPEG"),
        "grey.png": encoded(picture(20, 20, mode="L")),
        "large.png": encoded(picture(400, 400)),  # more bytes than are read for a header
        "late.jpg": encoded(picture(20, 20), "JPEG", exif=b"Exif\0\0" + bytes(60_000), icc_profile=bytes(60_000)),
        "palette.png": encoded(picture(20, 20, mode="P")),
        "transparent.png": encoded(picture(20, 20, mode="RGBA")),
        "still.gif": encoded(frames[0], "GIF"),
    }
    folder = written(tmp_path / "in", {**good, **{name: data for name, (data, _) in bad.items()}})
    figures = run(tmp_path, folder, buckets=BUCKETS | {"min_side": 8, "max_loss": 0.5}, shard=3)
    assert figures == {"samples": len(good), "refused": len(bad), "without_caption": len(good)}
    assert stored(tmp_path) == good
    reasons = refused(tmp_path)
    assert reasons.keys() == bad.keys()
    assert {name: part in reasons[name] for name, (_, part) in bad.items()} == dict.fromkeys(bad, True)
    assert f"{len(bad)} inputs were refused, listed in {tmp_path / 'store.zarr/refused.jsonl'}" in caplog.text
    assert "animated.gif: the picture of animated.gif" in caplog.text


@pytest.mark.parametrize("damaged", [{0, 1}, {2, 3}, {4, 5}, {0, 1, 4, 5}])
def test_a_shard_of_which_nothing_can_be_used_leaves_the_others_readable(tmp_path: Path, damaged: set[int]) -> None:
    whole = {f"{i}.png": encoded(picture(16, 16, seed=i)) for i in range(6)}
    files = {name: data[:-200] if int(name[0]) in damaged else data for name, data in whole.items()}
    figures = run(tmp_path, written(tmp_path / "in", files), shard=2)
    assert figures["refused"] == len(damaged)
    assert stored(tmp_path) == {name: data for name, data in whole.items() if int(name[0]) not in damaged}


def test_a_text_that_cannot_be_read_costs_its_picture_only(tmp_path: Path) -> None:
    data = encoded(picture(16, 16))
    files = {f"{name}.png": data for name in ("bytes", "good", "half", "json", "list")}
    texts = {"bytes.txt": "中文".encode("gb18030"), "good.txt": "fine", "good.json": '{"level": 1}'}
    more = {"half.json": '{"level": "\\ud83d"}', "json.json": "{", "list.json": '{"level": [1]}'}
    run(tmp_path, written(tmp_path / "in", {**files, **texts, **more}), data=TEXTS, shard=2)
    reasons = refused(tmp_path)
    assert "its .txt is not UTF-8" in reasons.pop("bytes.png")
    assert "its 'level' is not Unicode" in reasons.pop("half.png")
    assert "its .json is not JSON" in reasons.pop("json.png")
    assert "its 'level' is a list" in reasons.pop("list.png")
    assert not reasons
    assert stored(tmp_path) == {"good.png": data}


def test_the_log_names_what_was_refused_though_its_name_has_a_line_separator(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = written(tmp_path / "in", {"a.png": encoded(picture(20, 20)), "b\u2028c.png": b"no picture"})
    assert run(tmp_path, folder)["refused"] == 1
    assert "  b\u2028c.png: the picture of " in caplog.text


def test_pictures_without_a_caption_are_kept_and_counted_or_refused(tmp_path: Path) -> None:
    folder = folder_of_many(tmp_path / "in")
    kept = run(tmp_path / "keep", folder, data=TEXTS)
    assert kept == {"samples": 11, "refused": 0, "without_caption": 4}
    left = run(tmp_path / "refuse", folder, data=TEXTS, without_caption="refuse", shard=2)
    assert left == {"samples": 7, "refused": 4, "without_caption": 0}
    assert refused(tmp_path / "refuse") == {
        name: "it has no caption (without_caption: refuse)" for name in ("000.png", "003.png", "006.webp", "009.jpeg")
    }
    counts = Store(Folder(tmp_path / "refuse/store.zarr")).column("count").tolist()
    assert counts == [2, 2, 2, 1]  # what has no caption is left out before the shards are cut


class Inputs:
    """A collection of these inputs, of which nothing is ever read."""

    def __init__(self, *inputs: Input) -> None:
        self.all = inputs

    def inputs(self) -> Iterator[Input]:
        yield from self.all


def test_an_id_is_used_once_and_is_unicode() -> None:
    odd = os.fsdecode(b"\xff.png")
    inputs = Inputs(Input("a", (1,)), Input("b", problem="broken"), Input("a", (2,)), Input("b", (3,)), Input(odd))
    found = listed(inputs)  # type: ignore[arg-type]
    assert [(each.name, each.where, each.problem) for each in found] == [
        ("a", (1,), ""),
        ("b", (), "broken"),
        ("a", (2,), "an input before it has the same id"),
        ("b", (3,), "an input before it has the same id"),
        ("\\udcff.png", (), "its name is not UTF-8"),
    ]
    with pytest.raises(DataError, match="there is nothing to import"):
        listed(Inputs())  # type: ignore[arg-type]


verdicts = st.one_of(st.sampled_from([(16, 16), (16, 32), (32, 16)]), st.just("too small"))


@settings(max_examples=100, deadline=None)
@given(found=st.lists(verdicts, max_size=60), most=st.integers(1, 9))
def test_every_input_with_a_bucket_is_in_one_part_and_only_the_last_of_a_bucket_is_short(
    found: list[tuple[int, int] | str], most: int
) -> None:
    parts = parts_of(found, most=most, suffix="x")
    assert len({part.name for part in parts}) == len(parts)
    rows = [row for part in parts for row in part.rows]
    assert sorted(rows) == [row for row, verdict in enumerate(found) if not isinstance(verdict, str)]
    assert all(found[row] == part.size for part in parts for row in part.rows)
    assert all(list(part.rows) == sorted(part.rows) and len(part.rows) <= most for part in parts)
    short = Counter(part.size for part in parts if len(part.rows) < most)
    assert all(count == 1 for count in short.values())
    for size in short:
        own = [part for part in parts if part.size == size]
        assert len(own[-1].rows) < most


class Stopped(Exception):
    """What a test stops a run with."""


def stop_after(monkeypatch: pytest.MonkeyPatch, reads: int, error: Exception) -> None:
    """Let the reading of a picture fail after some that go well."""
    left, read = [reads], ImageFolder.read

    def failing(self: ImageFolder, each: Input) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise error
        return read(self, each)

    monkeypatch.setattr(ImageFolder, "read", failing)


def test_a_run_that_is_stopped_goes_on_without_looking_again_and_makes_the_same_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of_many(tmp_path / "in", 30)
    written(folder, {"zz.png": b"no picture", "aa.png": encoded(picture(20, 20))[:-300]})
    monkeypatch.setattr(scan, "PIECE", 7)
    run(tmp_path / "whole", folder, data=TEXTS, shard=4)
    looked, measured = [0], steps._verdict

    def counted(*given: Any) -> Any:
        looked[0] += 1
        return measured(*given)

    monkeypatch.setattr(steps, "_verdict", counted)
    for tries, reads in enumerate((5, 9)):
        with monkeypatch.context() as patch, pytest.raises(RunError, match=r"the work on part .* failed"):
            stop_after(patch, reads, Stopped("stop"))
            run(tmp_path / "again", folder, data=TEXTS, shard=4)
        assert looked[0] == 32, f"looked anew at try {tries}"
        assert not (tmp_path / "again/store.zarr/manifest.json").exists()
    run(tmp_path / "again", folder, data=TEXTS, shard=4)
    assert looked[0] == 32
    assert tree(tmp_path / "again/store.zarr") == tree(tmp_path / "whole/store.zarr")


def test_a_scan_that_is_stopped_goes_on_with_the_pieces_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of_many(tmp_path / "in", 30)
    monkeypatch.setattr(scan, "PIECE", 7)
    looked, measured = list[str](), steps._verdict

    def failing(each: Input, *given: Any) -> Any:
        looked.append(each.name)
        if len(looked) == 17:
            raise Stopped("stop")
        return measured(each, *given)

    monkeypatch.setattr(steps, "_verdict", failing)
    with pytest.raises(RunError, match=r"the work on the headers of '014\.webp' to '020\.png' failed"):
        run(tmp_path, folder)
    assert run(tmp_path, folder)["samples"] == 30
    assert looked[17:] == sorted(name for name in tree(folder) if not name.endswith((".txt", ".json")))[14:]


@pytest.mark.parametrize("change", ["picture", "text", "more", "captions", "keep", "buckets", "shard"])
def test_a_store_begun_from_other_inputs_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    folder = folder_of_many(tmp_path / "in")
    settings: dict[str, Any] = {"data": TEXTS, "shard": 2}
    with monkeypatch.context() as patch, pytest.raises(RunError):
        stop_after(patch, 5, Stopped("stop"))
        run(tmp_path, folder, **settings)
    before = tree(tmp_path / "store.zarr")
    files = {"picture": {"000.png": encoded(picture(20, 20))}, "text": {"001.txt": "!"}, "more": {"x.png": b""}}
    changes = {
        "captions": {"data": TEXTS | {"captions": {"zh_original": ".txt"}}},
        "keep": {"keep": "pixels"},
        "buckets": {"buckets": {"type": "square", "side": 16}},
        "shard": {"shard": 3},
    }
    written(folder, files.get(change, {}))
    with pytest.raises(DataError, match="was begun from other samples"):
        run(tmp_path, folder, **{**settings, **changes.get(change, {})})
    assert tree(tmp_path / "store.zarr") == before


def test_inputs_that_changed_before_anything_was_written_are_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of_many(tmp_path / "in", 3)
    with monkeypatch.context() as patch, pytest.raises(RunError):
        patch.setattr("kolors_zarr.store.sink.ZarrStoreSink.missing", lambda *_: (_ for _ in ()).throw(RunError("no")))
        run(tmp_path, folder)
    data = encoded(picture(60, 30))
    written(folder, {"000.png": data})
    assert run(tmp_path, folder)["samples"] == 3
    assert stored(tmp_path)["000.png"] == data


def test_a_published_store_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of_many(tmp_path / "in", 3)
    run(tmp_path, folder)
    monkeypatch.setattr(ImageFolder, "inputs", lambda _: pytest.fail("there is nothing to list"))
    with pytest.raises(DataError, match="there is already a store at"):
        run(tmp_path, folder)


def test_nothing_that_can_be_used_is_an_error_with_reasons_and_the_recipe_can_be_mended(tmp_path: Path) -> None:
    folder = written(tmp_path / "in", {"a.png": encoded(picture(9, 9)), "b.png": b"y"})
    said = (
        r"there are no samples to store: all 2 inputs were refused, the first are a.png: it is 9 x 9 .*; b.png: the pic"
    )
    with pytest.raises(DataError, match=said):
        run(tmp_path, folder, buckets={**BUCKETS, "min_side": 10})
    assert run(tmp_path, folder)["samples"] == 1


def test_a_store_may_lie_behind_a_url(tmp_path: Path) -> None:
    folder = folder_of_many(tmp_path / "in", 4)
    assert run(tmp_path, folder, path="memory://import-test/store")["samples"] == 4
    store = Store(open_place("memory://import-test/store"))
    assert set(store.read_strings("id", range(4))) == {"000.png", "001.jpeg", "002.webp", "003.png"}
    assert not (tmp_path / "store.zarr").exists()
