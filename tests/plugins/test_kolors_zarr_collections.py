from __future__ import annotations

import csv
import io
import json
import logging
import os
import random
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kolors_zarr.collections.inputs import Collection, Entry, Fields, Input
from kolors_zarr.collections.listing import Listing
from kolors_zarr.collections.parquet import ParquetFiles
from PIL import Image
from pydantic import ValidationError

from kolors_kernel import BuildContext
from kolors_kernel.errors import DataError, MissingDependency
from kolors_kernel.registry import discover


def picture(width: int, height: int, *, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def encoded(made: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    made.save(file, kind, **options)
    return file.getvalue()


def written(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def tar_of(path: Path, members: Sequence[tuple[str, bytes | str]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            content = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def collection(kind: str, path: Path, **settings: Any) -> Collection:
    config = discover().find("collection", kind).model_validate({"type": kind, "path": str(path), **settings})
    return config.build(BuildContext())  # type: ignore[attr-defined, no-any-return]


def entries(found: Collection) -> dict[str, Entry]:
    return {each.name: found.read(each) for each in found.inputs() if not each.problem}


def problems(found: Collection) -> dict[str, str]:
    """Return what is wrong with inputs, whether the list tells or the opening."""
    wrong = {}
    for each in found.inputs():
        try:
            if each.problem:
                raise DataError(each.problem)
            found.open(each).close()
        except DataError as error:
            wrong[each.name] = str(error)
    return wrong


# Image folders


def test_a_folder_gives_its_pictures_with_the_texts_beside_them(tmp_path: Path) -> None:
    cat, dog = encoded(picture(20, 18)), encoded(picture(40, 20), "JPEG")
    about = json.dumps({"level": 5, "style": "photo", "clean": True, "score": 0.5, "nothing": None, "other": [1]})
    files = {"猫/cat.png": cat, "猫/cat.zh.txt": "\ufeff 一只猫。\n", "猫/cat.txt": "A cat.", "猫/cat.json": about}
    written(tmp_path, {**files, "dog.JPEG": dog, "dog.json": '{"en": "A dog."}'})
    tags = {"level": "level", "style": "style", "clean": "clean", "score": "score", "nothing": "nothing"}
    captions = {"zh_original": ".zh.txt", "en_original": ".txt", "en_synthetic": "en"}
    found = collection("image_folder", tmp_path, captions=captions, tags=tags, constant_tags={"licence": "CC0"})
    assert entries(found) == {
        "dog.JPEG": Entry(dog, {"en_synthetic": "A dog."}, {"licence": "CC0"}),
        "猫/cat.png": Entry(
            cat,
            {"zh_original": "一只猫。", "en_original": "A cat."},
            {"licence": "CC0", "level": "5", "style": "photo", "clean": "true", "score": "0.5"},
        ),
    }


def test_a_folder_is_listed_in_one_order_and_says_what_it_passes_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["b/2.png", "b/10.png", "a.png", "c.webp", "b/a/1.jpg"]
    written(tmp_path, dict.fromkeys([*names, "a.txt", "alone.txt", "notes.md", ".hidden.png", "raw.heic"], b""))
    with caplog.at_level(logging.INFO):
        found = list(collection("image_folder", tmp_path).inputs())
    assert [each.name for each in found] == ["a.png", "c.webp", "b/10.png", "b/2.png", "b/a/1.jpg"]
    assert [each.where for each in found] == [(".txt",), (), (), (), ()]
    assert "1 .heic, 1 .md, 1 .png, 1 .txt" in caplog.text


def test_a_stamp_changes_with_the_picture_and_with_the_text_beside_it(tmp_path: Path) -> None:
    written(tmp_path, {"a.png": b"1", "a.txt": "one"})
    found = collection("image_folder", tmp_path)
    stamps = {next(iter(found.inputs())).stamp}
    for name, data in (("a.png", b"22"), ("a.txt", "three"), ("a.txt", "again")):
        written(tmp_path, {name: data})
        os.utime(tmp_path / name, ns=(0, len(stamps)))
        stamps.add(next(iter(found.inputs())).stamp)
    assert len(stamps) == 4


def test_a_link_that_leads_out_of_a_folder_is_refused_and_one_inside_is_followed(tmp_path: Path) -> None:
    outside, inside = written(tmp_path / "outside", {"secret.png": b"1", "secret.txt": "1"}), tmp_path / "inside"
    written(inside, {"real.png": b"22", "cap.png": b"333"})
    (inside / "again.png").symlink_to("real.png")
    (inside / "out.png").symlink_to(outside / "secret.png")
    (inside / "cap.txt").symlink_to(outside / "secret.txt")
    (inside / "broken.png").symlink_to("nowhere")
    (inside / "folder").symlink_to(outside)
    found = collection("image_folder", inside)
    wrong = problems(found)
    assert wrong.keys() == {"broken.png", "folder", "out.png"}
    assert "leads out of" in wrong["out.png"]
    assert "a link to a folder" in wrong["folder"]
    inputs = {each.name: each for each in found.inputs()}
    assert found.read(inputs["again.png"]).image == b"22"
    with pytest.raises(DataError, match=r"'cap.txt' leads out of"):
        found.read(inputs["cap.png"])


@pytest.fixture
def without_rights() -> Iterator[Path]:
    """Give a folder in which rights count: root, who may do everything, becomes nobody for a while."""
    with TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)
        if os.geteuid() != os.getuid():
            os.seteuid(os.getuid())


def test_what_may_not_be_read_is_refused_by_name_and_the_rest_is_imported(without_rights: Path, tmp_path: Path) -> None:
    data = encoded(picture(16, 16))
    files = dict.fromkeys(["good.png", "locked/a.png", "mine.png", "said.png", "said.txt"], data)
    root = written(without_rights / "in", files)
    for name in ("mine.png", "said.txt", "locked"):
        os.chmod(root / name, 0)
    found = collection("image_folder", root)
    if os.getuid() == 0:
        os.seteuid(65534)
    try:
        wrong = problems(found)
        with pytest.raises(DataError, match=r"said\.txt cannot be read: Permission"):
            found.read(Input("said.png", (".txt",)))
    finally:
        os.seteuid(os.getuid())
        os.chmod(root / "locked", 0o755)
    assert wrong.keys() == {"locked/", "mine.png"}
    assert "cannot be listed: Permission denied" in "".join(wrong.values())
    assert "cannot be read: Permission denied" in wrong["mine.png"]


def test_a_folder_that_cannot_be_listed_at_all_is_an_error(tmp_path: Path, without_rights: Path) -> None:
    with pytest.raises(DataError, match="there is no picture in"):
        list(collection("image_folder", tmp_path).inputs())
    closed = without_rights / "closed"
    closed.mkdir(mode=0)
    found = collection("image_folder", closed)
    if os.getuid() == 0:
        os.seteuid(65534)
    with pytest.raises(DataError, match="cannot be listed: Permission denied"):
        list(found.inputs())


# Tars


def test_the_files_of_a_tar_that_share_a_name_to_its_first_dot_are_one_sample(tmp_path: Path) -> None:
    one, two = encoded(picture(20, 20)), encoded(picture(30, 20), "WEBP")
    members = [("./a/1.png", one), ("./a/1.zh.txt", "一"), ("./a/2.json", '{"en": "two", "k": 2}'), ("./a/2.WebP", two)]
    written(tmp_path, {"more/.keep": b""})
    tar_of(tmp_path / "x.tar", [*members, ("./a/1.TXT", "one")])
    tar_of(tmp_path / "more/y.tar", [("a/1.png", two)])
    captions = {"zh_original": ".zh.txt", "en_original": ".txt", "en_synthetic": "en"}
    found = collection("webdataset", tmp_path, captions=captions, tags={"k": "k"})
    assert entries(found) == {
        "more/y.tar/a/1": Entry(two, {}, {}),
        "x.tar/a/1": Entry(one, {"zh_original": "一", "en_original": "one"}, {}),
        "x.tar/a/2": Entry(two, {"en_synthetic": "two"}, {"k": "2"}),
    }
    with found.open(list(found.inputs())[1]) as file:
        assert Image.open(file).size == (20, 20)


def test_what_is_wrong_in_a_tar_is_refused_and_the_rest_is_read(tmp_path: Path) -> None:
    data = encoded(picture(20, 20))
    members = [("good.png", data), ("two.png", data), ("two.jpg", data), ("text.txt", "alone")]
    path = tar_of(tmp_path / "x.tar", [*members, ("again.png", data), ("again.png", data)])
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "good.png"
        tar.addfile(link)
    written(tmp_path, {"no.tar": b"x" * 700, "empty.tar": b""})
    found = collection("webdataset", tmp_path)
    wrong = problems(found)
    assert {name: reason.split(";")[0] for name, reason in wrong.items() if name.startswith("x")} == {
        "x.tar/again": "it has two .png files",
        "x.tar/link": "its .png is a link or another special file",
        "x.tar/text": "it has 0 pictures among .txt, and must have one",
        "x.tar/two": "it has 2 pictures among .jpg, .png, and must have one",
    }
    assert "not a tar that can be read" in wrong["no.tar"]
    assert "not a tar that can be read" in wrong["empty.tar"]
    assert entries(found) == {"x.tar/good": Entry(data, {}, {})}


@pytest.mark.parametrize("cut", [700, 1536, 1700, 2048, 2100])
def test_a_tar_that_breaks_off_gives_what_is_before_and_says_so(tmp_path: Path, cut: int) -> None:
    data = bytes(range(256)) * 2
    whole = tar_of(tmp_path / "x.tar", [("a.png", data), ("b.png", data)]).read_bytes()
    (tmp_path / "x.tar").write_bytes(whole[:cut])  # header and data of a file are 512 bytes each
    found = collection("webdataset", tmp_path)
    assert any("cut off" in reason or "not a tar" in reason for reason in problems(found).values())
    read = {}
    for each in found.inputs():
        if not each.problem:
            try:
                read[each.name] = found.read(each).image
            except DataError as error:
                assert "the tar ends after" in str(error)
    assert all(image == data for image in read.values())
    assert ("x.tar/a" in read) == (cut >= 1536)


# Tables


def columns(rows: int) -> dict[str, list[Any]]:
    made = [encoded(picture(16 + i, 16, seed=i)) for i in range(rows)]
    return {
        "image": [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(made)],
        "en": [f"picture {i}" if i % 3 else None for i in range(rows)],
        "zh": [f"第{i}张" for i in range(rows)],
        "level": list(range(rows)),
        "key": [f"k{i}" for i in range(rows)],
    }


TABLE = {"captions": {"en_original": "en", "zh_original": "zh"}, "tags": {"level": "level"}}


def expected(rows: int, names: Callable[[int], str]) -> dict[str, Entry]:
    table = columns(rows)
    return {
        names(i): Entry(
            table["image"][i]["bytes"],
            {key: text for key, text in (("en_original", table["en"][i]), ("zh_original", table["zh"][i])) if text},
            {"level": str(i)},
        )
        for i in range(rows)
    }


def test_parquet_rows_are_read_in_any_order(tmp_path: Path) -> None:
    rows = 50
    pq.write_table(pa.table(columns(rows)), tmp_path / "train.parquet", row_group_size=20)
    found = collection("parquet", tmp_path, **TABLE)
    inputs = list(found.inputs())
    wanted = expected(rows, "train.parquet:{}".format)
    assert {each.name: found.read(each) for each in inputs} == wanted
    shuffled = random.Random(0).sample(inputs, rows)
    assert all(found.read(each) == wanted[each.name] for each in shuffled)
    for each in inputs[::-7]:
        with found.open(each) as file:
            assert file.read() == wanted[each.name].image


def test_parquet_keeps_a_few_rows_in_memory(tmp_path: Path) -> None:
    table = pa.table({"image": [bytes(100_000)] * 200, "caption": [""] * 200})
    pq.write_table(table, tmp_path / "one.parquet", row_group_size=200, use_dictionary=False, data_page_size=1)
    found = ParquetFiles(tmp_path, Fields({}, {}, {}), image="image", identity="")
    for each in found.inputs():
        assert len(found.read(each).image) == 100_000
        assert found._rows.batch.num_rows <= 16


def test_parquet_pictures_may_be_bytes_or_paths_inside_the_folder(tmp_path: Path) -> None:
    data = encoded(picture(20, 20))
    inside = written(tmp_path / "in", {"a.png": data})
    written(tmp_path, {"secret.png": data})
    cells = [{"bytes": None, "path": "a.png"}, {"bytes": None, "path": "../secret.png"}, {"bytes": None, "path": None}]
    pq.write_table(pa.table({"image": cells}), inside / "struct.parquet")
    pq.write_table(pa.table({"image": [data]}), inside / "bytes.parquet")
    pq.write_table(pa.table({"image": ["a.png", None, "https://example.com/a.png"]}), inside / "text.parquet")
    found = collection("parquet", inside, captions={})
    wrong = problems(found)
    assert wrong.keys() == {"struct.parquet:1", "struct.parquet:2", "text.parquet:1", "text.parquet:2"}
    assert "leads out of" in wrong["struct.parquet:1"]
    assert "neither its bytes nor a path" in wrong["struct.parquet:2"]
    assert "cannot be read: No such file" in wrong["text.parquet:2"]
    good = {each.name: found.read(each).image for each in found.inputs() if each.name not in wrong}
    assert good == dict.fromkeys(["bytes.parquet:0", "struct.parquet:0", "text.parquet:0"], data)


def test_a_column_of_ids_names_the_samples(tmp_path: Path) -> None:
    table = columns(4) | {"key": ["x", None, "z", ""]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    found = collection("parquet", tmp_path / "a.parquet", id="key", **TABLE)
    assert [each.name for each in found.inputs()] == ["x", "a.parquet:1", "z", "a.parquet:3"]
    assert problems(found) == dict.fromkeys(["a.parquet:1", "a.parquet:3"], "it has no 'key'")


def test_a_parquet_file_that_is_damaged_costs_its_rows_only(tmp_path: Path) -> None:
    pq.write_table(pa.table(columns(4)), tmp_path / "good.parquet")
    pq.write_table(pa.table(columns(4)), tmp_path / "page.parquet", compression="snappy", use_dictionary=False)
    data = bytearray((tmp_path / "page.parquet").read_bytes())
    data[4:400] = bytes(396)
    (tmp_path / "page.parquet").write_bytes(data)
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "good.parquet").read_bytes()[:-10])
    found = collection("parquet", tmp_path, **TABLE)
    wrong = problems(found)
    assert wrong.keys() == {"cut.parquet", *(f"page.parquet:{i}" for i in range(4))}
    assert "row group 0 of" in wrong["page.parquet:0"]


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"1"], "text": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="has no column 'caption'; it has image, text"):
        list(collection("parquet", tmp_path).inputs())
    with pytest.raises(DataError, match=r"there is no \.tar file in"):
        collection("webdataset", tmp_path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set with two splits as the library saves it, its pictures under the library's own feature."""
    datasets.disable_progress_bars()
    made = datasets.Dataset.from_dict(columns(7)).cast_column("image", datasets.Image())
    path = tmp_path_factory.mktemp("saved") / "set"
    datasets.DatasetDict({"train": made, "test": made.select([0])}).save_to_disk(path)
    datasets.enable_progress_bars()
    return path


def test_a_saved_set_gives_the_rows_of_a_split(saved: Path) -> None:
    assert entries(collection("hugging_face", saved, **TABLE)) == expected(7, "train:{}".format)
    assert entries(collection("hugging_face", saved, split="test", **TABLE)) == expected(1, "test:{}".format)
    assert entries(collection("hugging_face", saved, id="key", **TABLE)) == expected(7, "k{}".format)


def test_a_set_that_the_library_writes_as_parquet_needs_pyarrow_alone(saved: Path, tmp_path: Path) -> None:
    datasets.load_from_disk(saved)["train"].to_parquet(tmp_path / "train.parquet")
    assert entries(collection("parquet", tmp_path, **TABLE)) == expected(7, "train.parquet:{}".format)


def test_a_set_that_is_not_there_is_an_error(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no split 'valid'; it has train, test"):
        list(collection("hugging_face", saved, split="valid").inputs())
    with pytest.raises(DataError, match="cannot be loaded"):
        list(collection("hugging_face", tmp_path).inputs())
    with pytest.raises(ValidationError, match="either the path of a saved set or its name"):
        collection("hugging_face", saved, name="someone/something")


def test_a_set_of_the_hub_has_its_pictures_in_the_cache_and_nowhere_else(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, asked = encoded(picture(20, 20)), list[tuple[str, str]]()
    cache = written(tmp_path / "cache", {"hub/a.png": data})
    secret = written(tmp_path, {"secret.png": data}) / "secret.png"
    cells = [
        {"bytes": data, "path": "x.png"},
        *({"bytes": None, "path": str(p)} for p in (cache / "hub/a.png", secret)),
    ]

    def load_dataset(name: str, *, split: str) -> datasets.Dataset:
        asked.append((name, split))
        return datasets.Dataset.from_dict({"image": cells, "caption": ["a", "b", "c"]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets.config, "HF_CACHE_HOME", str(cache))
    config = discover().find("collection", "hugging_face").model_validate({"type": "hugging_face", "name": "own/set"})
    found = config.build(BuildContext())  # type: ignore[attr-defined]
    assert [each.name for each in found.inputs()] == ["train:0", "train:1", "train:2"]
    assert asked == [("own/set", "train")]
    assert problems(found).keys() == {"train:2"}
    assert found.read(Input("train:1", (1,))) == Entry(data, {"en_original": "b"}, {})


@pytest.mark.parametrize(("kind", "package"), [("parquet", "pyarrow"), ("hugging_face", "datasets")])
def test_a_library_that_is_missing_is_named_with_what_installs_it(
    kind: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"kolors_zarr.collections.{kind}", raising=False)
    with pytest.raises(MissingDependency, match=rf"needs the package '{package}'.*pip install"):
        collection(kind, tmp_path)


# Listings


def test_listings_of_every_form_say_the_same(tmp_path: Path) -> None:
    cat, dog = encoded(picture(20, 20)), encoded(picture(20, 24), "JPEG")
    written(tmp_path, {"p/猫.png": cat, "dog.jpg": dog})
    said = ['A "big" cat,\nasleep\r\n on a mat.', "犬"]
    rows = [
        {"path": "p/猫.png", "en": said[0], "level": "5", "unused": "x"},
        {"path": "dog.jpg", "en": said[1], "level": "", "unused": ""},
    ]
    for name, dialect in (("l.csv", "excel"), ("l.tsv", "excel-tab")):
        with (tmp_path / name).open("w", encoding="utf-8-sig", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]), dialect=dialect)
            table.writeheader()
            table.writerows(rows)
    lines = (json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "l.jsonl").write_text("\ufeff" + "\n\n".join(lines), encoding="utf-8")
    wanted = {
        "p/猫.png": Entry(cat, {"en_original": said[0]}, {"level": "5"}),
        "dog.jpg": Entry(dog, {"en_original": said[1]}, {}),
    }
    for name in ("l.csv", "l.tsv", "l.jsonl"):
        found = collection("listing", tmp_path / name, captions={"en_original": "en"}, tags={"level": "level"})
        assert entries(found) == wanted


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.tuples(texts, texts), max_size=8),
    form=st.sampled_from([("\n", csv.QUOTE_ALL), ("\r\n", csv.QUOTE_MINIMAL)]),
)
def test_each_row_of_a_csv_is_read_alone_as_the_whole_file_reads_it(
    rows: list[tuple[str, str]], form: tuple[str, Any]
) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "l.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator=form[0], quoting=form[1])
            table.writerows([("path", "caption"), *((f"{i}{name}", text) for i, (name, text) in enumerate(rows))])
        with path.open(encoding="utf-8", newline="") as file:
            wanted = [(row["path"], row["caption"]) for row in csv.DictReader(file)]
        listing = Listing(path, Fields({"en_original": "caption"}, {}, {}), image="path", identity="")
        found = [(each.name, listing.row(each)["caption"]) for each in listing.inputs()]
        assert found == wanted


def test_a_path_in_a_listing_that_climbs_out_is_refused_by_name(tmp_path: Path) -> None:
    data = encoded(picture(20, 20))
    inside = written(tmp_path / "in", {"a.png": data, "deep/b.png": data})
    written(tmp_path, {"secret.png": data, "inside.png": data})
    (inside / "link.png").symlink_to(tmp_path / "secret.png")
    (inside / "up").symlink_to(tmp_path)
    bad = ["../secret.png", str(tmp_path / "secret.png"), "link.png", "up/secret.png", "deep/../../secret.png"]
    paths = ["a.png", "deep/../a.png", *bad, "none.png", "deep", "nul\0.png", "x" * 300]
    (inside / "l.jsonl").write_text("".join(json.dumps({"path": path}) + "\n" for path in paths), encoding="utf-8")
    wrong = problems(collection("listing", inside / "l.jsonl"))
    assert wrong.keys() == {*paths} - {"a.png", "deep/../a.png"}
    assert all(f"'{path}' leads out of {inside}" in wrong[path] for path in bad)
    assert "none.png cannot be read: No such file" in wrong["none.png"]
    assert "deep cannot be read: Is a directory" in wrong["deep"]
    assert "is no path" in wrong["nul\0.png"]


def test_a_damaged_row_costs_itself_only(tmp_path: Path) -> None:
    written(tmp_path, {"a.png": b"1", "b.png": b"2"})
    bad = [b'{"path": "a.png"', b"[1]", b'{"path": 5}', b'{"caption": "x"}', b"\xff", b"[" * 100_000]
    lines = b"\n".join([b'{"path": "a.png"}', *bad, b'{"path": "b.png"}'])
    (tmp_path / "l.jsonl").write_bytes(lines)
    found = collection("listing", tmp_path / "l.jsonl")
    assert [each.name for each in found.inputs()] == ["a.png", *(f"l.jsonl:{i}" for i in range(2, 8)), "b.png"]
    reasons = list(problems(found).values())
    assert "not JSON" in reasons[0]
    assert "must be an object" in reasons[1]
    assert "names no picture: its 'path' is 5" in reasons[2]
    assert "names no picture: its 'path' is None" in reasons[3]
    assert "not UTF-8" in reasons[4]
    assert "nested too deep" in reasons[5] or "not JSON" in reasons[5]
    rows = ["path,caption", "a.png,one", "b.png", 'c.png,"two"x', "", "b.png,three", 'd.png,"never closed', "x,y", ""]
    (tmp_path / "l.csv").write_text("\n".join(rows), encoding="utf-8")
    found = collection("listing", tmp_path / "l.csv")
    wrong = problems(found)
    assert [each.name for each in found.inputs()] == ["a.png", "l.csv:3", "l.csv:4", "b.png", "l.csv:7"]
    assert wrong["l.csv:3"] == "the row has 1 cells and the header 2"
    assert "the row cannot be read" in wrong["l.csv:4"]
    assert "the row cannot be read" in wrong["l.csv:7"]


def test_a_listing_without_the_columns_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("file_name,text\n", encoding="utf-8")
    with pytest.raises(DataError, match="has no column 'caption'; it has file_name, text"):
        list(collection("listing", tmp_path / "l.csv").inputs())
    (tmp_path / "l.txt").write_text("", encoding="utf-8")
    with pytest.raises(ValidationError, match=r"must end in \.csv, \.tsv, \.jsonl or \.ndjson"):
        collection("listing", tmp_path / "l.txt")


def test_a_tag_is_said_once_and_holds_a_text_or_a_number(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="both give 'licence'"):
        collection("image_folder", tmp_path, tags={"licence": "a"}, constant_tags={"licence": "b"})
    fields = Fields({"en_original": "c"}, {"t": "t"}, {"u": "v"})
    with pytest.raises(DataError, match="its 't' is a list, and must be a text or a number"):
        fields.entry(b"", {"t": ["a", "b"]})
    with pytest.raises(DataError, match="its 'c' is not Unicode"):
        fields.entry(b"", {"c": "half of an emoji: \ud83d"})
    assert fields.entry(b"", {"c": float("nan"), "t": "  "}) == Entry(b"", {}, {"u": "v"})
