"""Inspecting and verifying stores, as a user does it."""

from __future__ import annotations

import errno
import json
import shutil
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kolors_zarr.loading.quarantine import Quarantine
from kolors_zarr.store import shard_files
from kolors_zarr.store.places import Folder
from kolors_zarr.store.reading import Store
from kolors_zarr.store.writing import write_store
from kolors_zarr.tools.contact_sheet import false_colours
from kolors_zarr.tools.lettering import Lettering
from kolors_zarr.tools.sheets import BLUE, PALE
from kolors_zarr.tools.telling import size
from kolors_zarr.tools_config import InspectStore, VerifyStore
from PIL import Image, ImageColor

from kolors_kernel import BuildContext
from kolors_kernel.cli import main
from kolors_kernel.errors import DataError, RecipeError
from kolors_kernel.values import Sample, SampleRecord

DEJAVU = Path("matplotlib/mpl-data/fonts/ttf/DejaVuSans.ttf")
SIZES = ((32, 32), (32, 48), (48, 32))


class Made(NamedTuple):
    """A picture of a folder, and what is beside it."""

    name: str
    height: int
    width: int
    colour: tuple[int, int, int]
    caption: str | None
    zh: str | None
    level: int | None


def made(i: int) -> Made:
    height, width = ((60, 60), (50, 90), (90, 50), (64, 60))[i % 4]
    colour = (40 * (i % 6), 255 - 30 * (i % 7), 20 + 50 * (i % 4))
    level = None if i % 11 == 0 else i % 5 + 1
    return Made(
        f"{i:03}.png", height, width, colour, None if i % 5 == 0 else f"picture {i}", "图" if i % 3 else None, level
    )


MADE = [made(i) for i in range(43)]


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that was imported from pictures, two of which could not be used."""
    folder = tmp_path_factory.mktemp("imported")
    (folder / "pictures").mkdir()
    for each in MADE:
        path = folder / "pictures" / each.name
        Image.new("RGB", (each.width, each.height), each.colour).save(path)
        if each.caption:
            path.with_suffix(".txt").write_text(each.caption)
        beside = {"zh": each.zh, "level": each.level}
        path.with_suffix(".json").write_text(json.dumps({key: value for key, value in beside.items() if value}))
    (folder / "pictures/cut.jpg").write_bytes(b"\xff\xd8\xff nothing follows")
    for i in range(2):
        Image.new("RGB", (7 + i, 90)).save(folder / f"pictures/narrow{i}.png")
    recipe = {
        "type": "import_samples",
        "data": {
            "type": "image_folder",
            "path": "pictures",
            "captions": {"en_original": ".txt", "zh_original": "zh"},
            "tags": {"level": "level"},
        },
        "buckets": {"type": "sizes", "table": SIZES, "min_side": 16},
        "path": "store",
        "shard": 8,
    }
    (folder / "import.yaml").write_text(json.dumps(recipe))
    assert main(["run", str(folder / "import.yaml"), "--out", str(folder)]) == 0
    return folder / "store"


@pytest.fixture
def store(imported: Path, tmp_path: Path) -> Path:
    return shutil.copytree(imported, tmp_path / "store")


def nearest(each: Made) -> str:
    ratios = [abs(np.log(each.width / each.height) - np.log(w / h)) for h, w in SIZES]
    return "{}x{}".format(*SIZES[int(np.argmin(ratios))])


def inspected(out: Path, path: Path | str, **changes: Any) -> dict[str, Any]:
    InspectStore(path=str(path), **changes).build(BuildContext(out=out)).run()
    report: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return report


def colours(path: Path) -> Counter[tuple[int, ...]]:
    """How many pixels of a picture have which colour."""
    with Image.open(path) as opened:
        return Counter({colour: count for count, colour in opened.convert("RGB").getcolors(1 << 24)})  # type: ignore[misc, union-attr]


def test_the_report_counts_what_there_is(imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the command line; every figure counted anew from the pictures themselves."""
    assert main(["run", "inspect_store", "--out", str(tmp_path), "--set", f"path={imported}"]) == 0
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["samples"] == len(MADE)
    assert report["buckets"] == dict(sorted(Counter(map(nearest, MADE)).items()))
    assert report["captions"] == {
        "en_original": sum(each.caption is not None for each in MADE),
        "zh_original": sum(each.zh is not None for each in MADE),
    }
    assert report["without_caption"] == sum(each.caption is None and each.zh is None for each in MADE)
    assert report["languages"] == {"zh": report["captions"]["zh_original"], "en": report["captions"]["en_original"]}
    assert report["origins"] == {"original": len(MADE) - report["without_caption"]}
    levels = Counter(str(each.level) for each in MADE if each.level)
    assert report["tags"]["level"] == {
        "values": dict(levels.most_common()),
        "others": 0,
        "values_not_shown": 0,
        "lacking": len(MADE) - levels.total(),
    }
    aspects = Counter(round(np.log2(each.width / each.height) * 8) for each in MADE)
    assert {i - 16: count for i, count in enumerate(report["aspects"]) if count} == aspects
    files = Counter[str]()
    for path in (imported / "samples").rglob("c/*"):
        files[path.parent.parent.name] += path.stat().st_size if path.is_file() else 0
    assert report["bytes"] == dict(files)
    assert report["refused"] == 3
    assert [each["inputs"] for each in report["reasons"]] == [2, 1]
    assert report["reasons"][0]["reason"].startswith("it is N x N pixels")
    told = capsys.readouterr().out
    value, count = levels.most_common(1)[0]
    assert f"samples: {len(MADE)}" in told and f" {value} ({count})" in told and "refused inputs: 3" in told


@given(counts=st.lists(st.integers(1, 90), min_size=1, max_size=3), batch=st.integers(1, 9), world=st.integers(1, 5))
@settings(max_examples=15, deadline=None)
def test_an_epoch_is_what_its_formulas_say(counts: list[int], batch: int, world: int) -> None:
    from kolors_zarr.tools.census import _epoch

    found = _epoch({str(i): count for i, count in enumerate(counts)}, batch=batch, world=world)
    together = batch * world
    assert found.full_steps == sum(count // together for count in counts)
    for i, count in enumerate(counts):
        row = found.buckets[str(i)]
        assert (row["full_batches"], row["left_over"]) == divmod(count, together)
    slots = sum(row["samples"] + row["padded"] for row in found.buckets.values())
    assert slots == found.steps * together


def test_other_buckets_can_be_tried_on_the_same_store(imported: Path, tmp_path: Path) -> None:
    square = inspected(tmp_path, imported, buckets={"type": "square", "side": 16, "min_side": 55})
    assert square["buckets"] == {"16x16": sum(min(each.height, each.width) >= 55 for each in MADE)}
    ((example, count),) = square["no_bucket"].items()
    assert count == sum(min(each.height, each.width) < 55 for each in MADE) and "min_side" in example
    assert square["epoch"]["buckets"].keys() == {"16x16"}


def test_pictures_that_are_cut_have_the_buckets_they_have(tmp_path: Path) -> None:
    write_store(tmp_path / "store", latent_samples(), shard_rows=4)
    with pytest.raises(RecipeError, match="already cut"):
        inspected(tmp_path, tmp_path / "store", buckets={"type": "square"})


def test_counts_come_from_the_index_alone(store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = inspected(tmp_path, store)
    for shard in (store / "samples").rglob("c/*"):
        shutil.rmtree(shard) if shard.is_dir() else shard.unlink()
    assert inspected(tmp_path, store) == whole
    assert "sample number 0 is not on the contact sheet" in caplog.text
    assert colours(tmp_path / "contact_sheet.png")[ImageColor.getrgb(PALE)] > 10_000


def test_only_the_most_frequent_values_are_listed(tmp_path: Path) -> None:
    def samples() -> list[Sample]:
        values = ["common"] * 5 + ["rare"] * 3 + [f"single {i}" for i in range(4)] + [None]
        tags: list[dict[str, str]] = [{} if value is None else {"kind": value} for value in values]
        return [Sample(SampleRecord(str(i), (8, 8), {}, tag), image=png((8, 8), "red")) for i, tag in enumerate(tags)]

    write_store(tmp_path / "store", samples())
    (kind,) = inspected(tmp_path, tmp_path / "store", top=2)["tags"].values()
    assert kind == {"values": {"common": 5, "rare": 3}, "others": 4, "values_not_shown": 4, "lacking": 1}


def test_reasons_that_differ_in_names_and_numbers_are_one(tmp_path: Path) -> None:
    write_store(tmp_path / "store", latent_samples())
    names = ["a", "cat.jpg", "7", "x/a.png"]
    lines = [{"input": name, "reason": f"the picture of {name} has 1{len(name)}0.5 million pixels"} for name in names]
    (tmp_path / "store/refused.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    manifest = Store(Folder(tmp_path / "store")).manifest.model_copy(update={"refused": len(names)})
    (tmp_path / "store/manifest.json").write_bytes(manifest.to_bytes())
    (reason,) = inspected(tmp_path, tmp_path / "store")["reasons"]
    assert reason == {"reason": "the picture of it has N million pixels", "inputs": 4, "example": "a"}


def png(size: tuple[int, int], colour: str | tuple[int, int, int]) -> bytes:
    file = BytesIO()
    Image.new("RGB", size[::-1], colour).save(file, "PNG")
    return file.getvalue()


def test_bars_are_as_long_as_their_counts(tmp_path: Path, imported: Path) -> None:
    report = inspected(tmp_path, imported)
    with Image.open(tmp_path / "histogram.png") as opened:
        blue = (np.asarray(opened) == np.array(ImageColor.getrgb(BLUE))).all(axis=-1)
    left = blue[:, : blue.shape[1] // 2].sum(axis=1)  # buckets come first, on the left
    starts = np.flatnonzero((left[1:] > 0) & (left[:-1] == 0)) + 1
    lengths = [int(left[start]) for start in starts[: len(report["buckets"])]]
    most = max(report["buckets"].values())
    for length, count in zip(lengths, report["buckets"].values(), strict=True):
        assert abs(length - max(lengths) * count / most) <= 1


def test_the_contact_sheet_shows_pictures_of_every_bucket(imported: Path, tmp_path: Path) -> None:
    inspected(tmp_path, imported, pictures=43)
    shown = colours(tmp_path / "contact_sheet.png")
    assert min(shown[each.colour] for each in MADE) > 10_000
    inspected(tmp_path, imported, pictures=1)
    shown = colours(tmp_path / "contact_sheet.png")
    assert len({each.colour for each in MADE if shown[each.colour] > 10_000}) == len(SIZES)


def latent_samples() -> list[Sample]:
    ramp = torch.linspace(-3, 5, 64).reshape(8, 8).half()
    latents = torch.stack([ramp, -ramp, torch.full((8, 8), 7.0).half(), ramp])
    records = [SampleRecord(f"id{i}", (64, 64), {"zh_original": "一只猫"}) for i in range(3)]
    return [Sample(record, latents=latents) for record in records]


def test_latents_are_shown_in_false_colours(tmp_path: Path) -> None:
    latents = latent_samples()[0].latents
    assert latents is not None
    shown = false_colours(latents.numpy())
    assert shown[0, 0].tolist() == [0, 255, 0] and shown[-1, -1].tolist() == [255, 0, 0]
    assert (np.diff(shown[..., 0].ravel().astype(int)) >= 0).all()
    assert np.array_equal(false_colours(latents[:1].numpy())[..., 2], shown[..., 0])
    write_store(tmp_path / "store", latent_samples())
    inspected(tmp_path, tmp_path / "store")
    assert colours(tmp_path / "contact_sheet.png")[255, 0, 0] > 100


def test_a_font_shows_only_letters_that_it_has(tmp_path: Path) -> None:
    plain = Lettering(12, font=None)
    assert plain.has("a cat, 3 x 4!") and not plain.has("a 猫") and not plain.has("Жук")
    assert plain.readable("猫 cat\n") == "? cat "
    matplotlib = pytest.importorskip("matplotlib")
    dejavu = Lettering(12, font=Path(matplotlib.__file__).parents[1] / DEJAVU)
    assert dejavu.has("Жук é") and not dejavu.has("猫")
    (tmp_path / "no.ttf").write_text("no font")
    with pytest.raises(RecipeError, match="cannot be used as a font"):
        Lettering(12, font=tmp_path / "no.ttf")


@given(text=st.text(st.sampled_from("ab ,猫狗é"), max_size=60), width=st.integers(30, 200), most=st.integers(1, 4))
def test_text_fits_into_its_room(text: str, width: int, most: int) -> None:
    lettering = Lettering(12, font=None)
    lines = lettering.wrapped(text, width, most=most)
    assert len(lines) <= most
    assert all(lettering.width(line) <= width for line in lines)
    assert lettering.width(lettering.ending(text, width)) <= width
    if not any("..." in line for line in lines):
        assert "".join("".join(lines).split()) == "".join(text.split())


def test_sizes_are_said_in_units_that_suit_them() -> None:
    assert [size(count) for count in (0, 999, 1000, 999_949, 999_950, 2_500_000, 3e18)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "999.9 kB",
        "1.0 MB",
        "2.5 MB",
        "3000.0 PB",
    ]


def verified(path: Path | str, out: Path) -> Mapping[str, float]:
    return VerifyStore(path=str(path)).build(BuildContext(out=out)).run()


def listed(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "damaged.jsonl").read_text(encoding="utf-8").splitlines()]


def change(file: Path, edit: Callable[[bytearray], Any]) -> None:
    data = bytearray(file.read_bytes())
    edit(data)
    file.write_bytes(data)


def objects(path: Path) -> list[Path]:
    """Every shard and every chunk of the index."""
    return sorted(each for each in path.rglob("*") if each.is_file() and "c" in each.relative_to(path).parts)


def rows_of(shard: bytes, place: int, rows: int) -> set[int]:
    """The rows whose chunk, checksum included, a byte of a shard belongs to; all that there are for its index."""
    table = struct.iter_unpack("<QQ", shard[-16 * rows - 4 : -4])
    spans = {row: (start, start + length) for row, (start, length) in enumerate(table) if start != 2**64 - 1}
    own = {row for row, (start, stop) in spans.items() if start <= place < stop}
    return own or set(spans)


def test_a_whole_store_is_found_whole(imported: Path, tmp_path: Path) -> None:
    (tmp_path / "damaged.jsonl").write_text("of a run before\n")
    figures = verified(imported, tmp_path)
    shards = [each for each in objects(imported) if "samples" in each.parts]
    assert figures == {
        "samples": len(MADE),
        "objects": len(shards),
        "bytes": sum(each.stat().st_size for each in shards),
        "damaged": 0,
    }
    assert not (tmp_path / "damaged.jsonl").exists()


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_bit_that_is_turned_is_found_and_named(
    imported: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    file = data.draw(st.sampled_from(objects(imported)))
    before = file.read_bytes()
    place, bit = data.draw(st.integers(0, len(before) - 1)), data.draw(st.integers(0, 7))
    key, out = file.relative_to(imported).as_posix(), tmp_path_factory.mktemp("out")
    ids = Store(Folder(imported)).read_strings("id", range(len(MADE)))
    try:
        change(file, lambda it: it.__setitem__(place, it[place] ^ 1 << bit))
        with pytest.raises(DataError, match="is damaged"):
            verified(imported, out)
    finally:
        file.write_bytes(before)
    lines = listed(out)
    assert {line["key"] for line in lines} == {key}
    if key.startswith("samples/"):
        assert {line["chunk"] for line in lines} == rows_of(before, place, rows=8)
        for line in lines:
            assert line["id"] == (None if "/id/" in key else ids[line["number"]])


def test_shards_that_are_short_or_gone_or_of_another_place_are_found(store: Path, tmp_path: Path) -> None:
    image = store / "samples/32x32/image/c"
    change(image / "0", lambda data: data.__delitem__(slice(-1, None)))
    (image / "1").unlink()
    shutil.copy(store / "samples/32x48/tags/c/0", store / "samples/32x48/tags/c/1")
    (store / "samples/48x32/id/c/0").unlink()
    for place in ("48x32/image/c/1", "32x48/image/c/0"):
        (store / "samples" / place).unlink()
        (store / "samples" / place).mkdir()
    with pytest.raises(DataError):
        verified(store, tmp_path)
    keys = Counter(line["key"] for line in listed(tmp_path))
    assert keys["samples/32x32/image/c/0"] == keys["samples/32x32/image/c/1"] == 8
    assert keys["samples/32x48/image/c/0"] == keys["samples/48x32/id/c/0"] == 8
    assert keys["samples/32x48/tags/c/1"] == keys["samples/48x32/image/c/1"] == 3
    assert len(keys) == 6


def test_all_that_samples_are_found_by_is_checked_first(store: Path, tmp_path: Path) -> None:
    (store / "samples/32x32/zarr.json").unlink()
    (store / "index/1/tag_level/c/0").unlink()
    (store / "index/1/captions/zarr.json").write_text("[]")
    change(store / "refused.jsonl", lambda data: data.__delitem__(slice(-30, None)))
    (store / "samples/32x32/image/c/0").unlink()
    with pytest.raises(DataError, match=r"no sample was looked at; .*: 4, listed"):
        verified(store, tmp_path)
    assert {line["key"] for line in listed(tmp_path)} == {
        "samples/32x32/zarr.json",
        "index/1/tag_level/c/0",
        "index/1/captions/zarr.json",
        "refused.jsonl",
    }


def test_the_list_is_that_of_a_training(store: Path, tmp_path: Path) -> None:
    """Line by line what a source writes that replaces damaged samples."""
    change(store / "samples/32x32/image/c/0", lambda data: data.__setitem__(20, data[20] ^ 1))
    with pytest.raises(DataError):
        verified(store, tmp_path)
    damages = Store(Folder(store)).damages("image", range(16))
    Quarantine(tmp_path / "quarantine.jsonl", store=str(store)).add(damages)
    assert (tmp_path / "damaged.jsonl").read_text() == (tmp_path / "quarantine.jsonl").read_text()


def test_a_user_is_told_and_the_exit_code_says_so(
    store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["run", "verify_store", "--out", str(tmp_path / "out"), "--set", f"path={store}"]
    assert main(command) == 0
    assert "damaged: 0" in capfd.readouterr().out
    (store / "samples/32x32/image/c/1").unlink()
    assert main([*command, "--set", "workers.count=2"]) == 2
    said = capfd.readouterr()
    assert "samples/32x32/image/c/1: the shard is missing (samples '0" in said.out and "3 more" in said.out
    assert f"8 of {len(MADE)} samples; " in said.err and "damaged.jsonl" in said.err
    assert main(["run", "verify_store", "--out", str(tmp_path), "--set", f"path={tmp_path / 'no'}"]) == 2
    shutil.rmtree(store / "index")
    assert main(["run", "inspect_store", "--out", str(tmp_path), "--set", f"path={store}"]) == 2


@pytest.mark.parametrize("recipe", ["inspect_store", "verify_store"])
def test_it_works_out_of_the_box(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the store that comes with the demo."""
    assert main(["run", recipe, "--out", str(tmp_path)]) == 0
    assert "samples: 5556" in capsys.readouterr().out


def test_a_disk_that_refuses_costs_the_samples_it_refuses(
    imported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is mapped, as the system ends a process that looks at mapped memory which cannot be read."""
    key, read = "samples/32x32/image/c/0", Folder.read_ranges
    table = (imported / key).read_bytes()[-16 * 8 - 4 : -4]
    start, _ = struct.unpack_from("<QQ", table, 16 * 3)

    def failing(self: Folder, name: str, ranges: list[tuple[int, int]]) -> list[bytes]:
        if name == key and any(first <= start < first + count for first, count in ranges):
            raise OSError(errno.EIO, "Input/output error")
        return read(self, name, ranges)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a shard is mapped")

    monkeypatch.setattr(Folder, "read_ranges", failing)
    monkeypatch.setattr(shard_files.mmap, "mmap", refuse)
    with pytest.raises(DataError, match=f"1 of {len(MADE)} samples"):
        verified(imported, tmp_path)
    (line,) = listed(tmp_path)
    assert (line["key"], line["chunk"]) == (key, 3) and "Input/output error" in line["why"] and line["id"]


def test_a_store_elsewhere_is_read_in_ranges(store: Path, tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    (store / "samples/32x32/tags/c/1").unlink()
    for each in store.rglob("*"):
        if each.is_file():
            files.pipe_file(f"/kolors-tools/{each.relative_to(store).as_posix()}", each.read_bytes())
    try:
        assert inspected(tmp_path, "memory://kolors-tools")["samples"] == len(MADE)
        with pytest.raises(DataError, match="memory://kolors-tools is damaged: 8 of"):
            verified("memory://kolors-tools", tmp_path)
    finally:
        files.rm("/kolors-tools", recursive=True)
