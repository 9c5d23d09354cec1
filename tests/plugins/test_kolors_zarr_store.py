from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from kolors_zarr import layout, table, table_writer
from kolors_zarr.config import ZarrSink
from kolors_zarr.reader import Store
from kolors_zarr.tiny import temporary_path
from kolors_zarr.writer import ZarrStoreWriter
from PIL import Image

from kolors_kernel.component import BuildContext
from kolors_kernel.errors import DataError, RunError
from kolors_kernel.testing.strategies import sample_records
from kolors_kernel.values import NO_CAPTION, Conditioning, Sample, SampleRecord


def record(i: int) -> SampleRecord:
    captions = {"zh_original": f"第{i}张图", "en_original": f"picture {i}", "en_synthetic": f"A picture of {i % 3}."}
    return SampleRecord(f"id{i}", (8 + i, 16), captions, {"split": "train", "风格": "扁平"})


def png(i: int) -> bytes:
    encoded = BytesIO()
    pixels = np.random.default_rng(i).integers(0, 256, (8 + i, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(encoded, "PNG")
    return encoded.getvalue()


def conditioning(text: str, bias: bool = True) -> Conditioning:
    generator = torch.Generator().manual_seed(sum(text.encode()))
    tokens, pooled = (torch.randn(*shape, generator=generator).half() for shape in ((1, 5, 6), (1, 6)))
    return Conditioning(tokens, pooled, torch.zeros(1, 5) if bias else None)


def full_sample(i: int) -> Sample:
    generator = torch.Generator().manual_seed(i)
    texts = {key: conditioning(text) for key, text in record(i).captions.items()} | {NO_CAPTION: conditioning("")}
    return Sample(record(i), png(i), torch.randn(4, 2, 3, generator=generator), texts, (8 + i, 16, 1, 2, 8, 12))


def image_samples(count: int = 7) -> Iterator[Sample]:
    return (Sample(record(i), png(i)) for i in range(count))


def written(path: Path, samples: Iterator[Sample]) -> Path:
    ZarrStoreWriter(path).write(samples)
    return path


def read_everything(path: Path) -> list[object]:
    store = Store(path)
    rows = range(store.count)
    found: list[object] = [store.records, store.sizes.tolist(), store.images(rows)]
    if "latents" in store.holds:
        found += [[latent.tolist() for latent in store.latents(rows)], store.text_rows]
        texts = store.conditioning(range(store.texts.count if store.texts else 0))
        found += [[(t.tokens.tolist(), t.pooled.tolist(), t.key_bias is None) for t in texts]]
    return found


def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_writer, "CHUNK_BYTES", 256)
    monkeypatch.setattr(table_writer, "SHARD_BYTES", 1024)
    monkeypatch.setattr(table, "SMALL_BYTES", 2048)


def test_a_full_sample_comes_back_as_it_was(tmp_path: Path) -> None:
    samples = [full_sample(i) for i in range(6)]
    store = Store(written(tmp_path / "s", iter(samples)))
    assert store.holds == {"captions", "images", "latents", "conditioning"}
    assert store.records == [s.record for s in samples]
    assert store.sizes.tolist() == [list(s.size or ()) for s in samples]
    assert store.images([4, 0]) == [samples[4].image, samples[0].image]
    for row, latents in zip([5, 2, 3, 2], store.latents([5, 2, 3, 2]), strict=True):
        assert torch.equal(latents, samples[row].latents)  # type: ignore[arg-type]
    for row, sample in enumerate(samples):
        assert store.text_rows[row].keys() == sample.conditioning.keys()
        for key, text in sample.conditioning.items():
            (found,) = store.conditioning([store.text_rows[row][key]])
            assert torch.equal(found.tokens, text.tokens)
            assert torch.equal(found.pooled, text.pooled)
            assert found.key_bias is not None and torch.equal(found.key_bias, text.key_bias)  # type: ignore[arg-type]
            assert found.tokens.dtype == torch.float16


@settings(max_examples=12, deadline=None)
@given(records=st.lists(sample_records(), min_size=1, max_size=9))
def test_any_records_come_back_without_their_empty_captions(records: list[SampleRecord]) -> None:
    path = temporary_path()
    ZarrStoreWriter(path).write(Sample(each, b"\x00" * (i % 3) + b"x") for i, each in enumerate(records))
    store = Store(path)
    assert [(r.id, r.size, dict(r.tags)) for r in store.records] == [(r.id, r.size, dict(r.tags)) for r in records]
    assert [dict(r.captions) for r in store.records] == [{k: t for k, t in r.captions.items() if t} for r in records]
    shutil.rmtree(path.parent)


def test_columns_longer_than_a_shard_come_back_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_everything(written(tmp_path / "large", (full_sample(i) for i in range(40))))
    small_shards(monkeypatch)
    path = written(tmp_path / "small", (full_sample(i) for i in range(40)))
    assert len(list((path / "samples/image/c").iterdir())) > 20
    assert read_everything(path) == whole


def test_equal_conditioning_is_kept_once(tmp_path: Path) -> None:
    store = Store(written(tmp_path / "s", (full_sample(i) for i in range(12))))
    assert store.texts is not None
    assert store.texts.count == 12 + 12 + 3 + 1  # zh and en original, three synthetic ones, the empty one


def test_the_documented_layout_can_be_read_with_zarr_alone(tmp_path: Path) -> None:
    path = written(tmp_path / "s", (full_sample(i) for i in range(5)))
    root = zarr.open_group(path, mode="r")
    assert root.attrs["kolors_store"] == {"version": 1, "count": 5}
    columns = dict(root["samples"].attrs)["columns"]
    ragged = [name for name, kind in columns.items() if kind == "bytes"]
    offsets, images = root["samples/offsets"][:], root["samples/image"][:]  # type: ignore[index]
    first, last = offsets[3:5, ragged.index("image")].tolist()  # type: ignore[index, union-attr, call-overload]
    assert images[first:last].tobytes() == png(3)  # type: ignore[index, union-attr, call-overload]
    types = {json.loads(file.read_text()).get("data_type") for file in path.rglob("zarr.json")}
    assert types == {None, "uint8", "uint32", "uint64", "int32", "float32", "float16"}  # of the specification, all


def test_a_store_of_thousands_of_small_pictures_is_few_files_with_little_overhead(tmp_path: Path) -> None:
    pictures = [png(i % 8) for i in range(2000)]
    samples = (
        Sample(SampleRecord(f"{i}/style", (64, 64), record(i).captions, {"style": "flat"}), picture)
        for i, picture in enumerate(pictures)
    )
    path = written(tmp_path / "s", samples)
    files = [file for file in path.rglob("*") if file.is_file()]
    assert len(files) <= 24
    overhead = sum(file.stat().st_size for file in files) - sum(map(len, pictures))
    assert overhead < 2000 * 60  # captions, index and all


def test_everything_lost_or_changed_in_a_store_is_found(tmp_path: Path) -> None:
    path = written(tmp_path / "s", (full_sample(i) for i in range(6)))
    whole = read_everything(path)
    for file in [file for file in path.rglob("*") if file.is_file()]:
        content = file.read_bytes()
        damages = {"missing": None, "cut": content[: len(content) // 2], "empty": b""}
        if file.name != "zarr.json":
            for place in (0, len(content) // 3, len(content) - 1):
                flipped = bytearray(content)
                flipped[place] ^= 0x10
                damages[f"flipped at {place}"] = bytes(flipped)
        for name, damage in damages.items():
            file.unlink() if damage is None else file.write_bytes(damage)
            with pytest.raises(DataError) as error:
                read_everything(path)
            assert str(path) in str(error.value), (file, name)
            file.write_bytes(content)
    assert read_everything(path) == whole


def test_a_damaged_picture_is_named_and_the_others_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_shards(monkeypatch)
    path = written(tmp_path / "s", image_samples(7))
    offsets = np.asarray(zarr.open_group(path, mode="r")["samples/offsets"])
    store = Store(path)
    at = int(offsets[3, store.samples.ragged.index("image")]) + 40  # a byte of the fourth picture
    file = path / f"samples/image/c/{at // 1024}"
    content = bytearray(file.read_bytes())
    content[at % 1024 + 4 * (at % 1024 // 256)] ^= 1  # 4 bytes of checksum after each chunk of 256
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"'image' of sample 'id3'.* samples/image/c/\d") as error:
        store.images(range(7))
    assert "id0" not in str(error.value)
    assert "id6" not in str(error.value)
    assert store.images([0, 6]) == [png(0), png(6)]


def test_a_missing_file_is_named_with_its_samples_on_opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_shards(monkeypatch)
    path = written(tmp_path / "s", image_samples(7))
    (path / "samples/image/c/0").unlink()
    with pytest.raises(DataError, match=r"'image' lacks 1 of its \d+ files.*samples/image/c/0, with sample 'id0' to"):
        Store(path)


def test_a_chunk_of_zeros_is_told_from_a_lost_one(tmp_path: Path) -> None:
    path = written(tmp_path / "s", (Sample(record(i), latents=torch.zeros(4, 8, 8)) for i in range(3)))
    assert not torch.stack(Store(path).latents(range(3))).any()
    shutil.rmtree(path / "samples/latents/c")
    with pytest.raises(DataError, match="'latents' lacks 1 of its 1 files"):
        Store(path)


def test_a_folder_that_is_not_a_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    zarr.create_group(tmp_path / "other")
    (tmp_path / "file").write_text("x")
    for name, why in {
        "empty": "no zarr.json",
        "other": "no attribute",
        "file": "no such folder",
        "none": "no such",
    }.items():
        with pytest.raises(DataError, match=why):
            Store(tmp_path / name)


def test_a_newer_store_is_refused_with_both_versions(tmp_path: Path) -> None:
    path = written(tmp_path / "s", image_samples(1))
    root = json.loads((path / "zarr.json").read_text())
    root["attributes"][layout.ATTRIBUTE]["version"] = 2
    (path / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(DataError, match=r"version 2.* up to 1"):
        Store(path)


def test_what_is_there_is_never_overwritten(tmp_path: Path) -> None:
    path = written(tmp_path / "s", image_samples(2))
    before = read_everything(path)
    with pytest.raises(DataError, match="already something"):
        ZarrSink(path=path).build(BuildContext()).write(image_samples(3))
    assert read_everything(path) == before


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def stopped() -> Iterator[Sample]:
        yield from image_samples(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ZarrStoreWriter(tmp_path / "s").write(stopped())
    with pytest.raises(DataError, match="no samples"):
        ZarrStoreWriter(tmp_path / "s").write([])
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_error_that_leaves_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    samples = [Sample(record(0), os.urandom(1 << 20))]
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, hard))  # no file may grow beyond: the write fails half way
    try:
        with pytest.raises(RunError, match=r"could not be written.*nothing was left"):
            ZarrStoreWriter(tmp_path / "s").write(samples)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="could not be written"):
        ZarrStoreWriter(tmp_path / "file/s").write(image_samples(1))


def test_an_error_of_the_samples_stays_itself(tmp_path: Path) -> None:
    def unreadable() -> Iterator[Sample]:
        yield Sample(record(0), (tmp_path / "gone.png").read_bytes())

    with pytest.raises(FileNotFoundError):
        ZarrStoreWriter(tmp_path / "s").write(unreadable())


@pytest.mark.parametrize(
    ("second", "why"),
    [
        (Sample(record(1)), "holds nothing, but 'id0' holds latents and conditioning"),
        (Sample(record(1), png(1), torch.zeros(4, 2, 2)), "holds image and latents"),
        (Sample(record(1), latents=torch.zeros(4, 2, 3), conditioning={"empty": conditioning("")}), "rows before as"),
        (Sample(record(1), latents=torch.zeros(4, 2, 2).half(), conditioning={"empty": conditioning("")}), "float16"),
        (Sample(record(1), latents=torch.zeros(4, 2, 2).bfloat16(), conditioning={"a": conditioning("")}), "bfloat16"),
        (
            Sample(record(1), latents=torch.zeros(4, 2, 2), conditioning={"a": conditioning("b", False)}),
            "no 'key_bias'",
        ),
        (Sample(record(1), None, torch.zeros(4, 2, 2), {"a": conditioning("")}, (1, 1, 0, 0, 1, 1)), "by its size"),
    ],
)
def test_samples_that_differ_in_kind_are_refused(tmp_path: Path, second: Sample, why: str) -> None:
    first = Sample(record(0), latents=torch.zeros(4, 2, 2), conditioning={"empty": conditioning("")})
    with pytest.raises(ValueError, match=why):
        ZarrStoreWriter(tmp_path / "s").write([first, second])
    assert list(tmp_path.iterdir()) == []


def test_a_sample_without_a_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither an image nor latents"):
        ZarrStoreWriter(tmp_path / "s").write([Sample(record(0))])


def test_a_published_store_can_be_read_by_others(tmp_path: Path) -> None:
    path = written(tmp_path / "s", image_samples(1))
    (tmp_path / "plain").mkdir()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
