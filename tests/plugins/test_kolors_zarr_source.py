from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kolors_zarr.config import ZarrSink, ZarrSource
from kolors_zarr.loading.source import ZarrDataSource
from kolors_zarr.store import index_writing
from kolors_zarr.store.writing import write_store
from kolors_zarr.tiny import temporary_path, tiny_store
from PIL import Image
from pydantic import ValidationError

from kolors_kernel.component import BuildContext, RecipePath
from kolors_kernel.errors import DataError
from kolors_kernel.protocols import CaptionMix
from kolors_kernel.values import NO_CAPTION, Batch, Conditioning, Part, Sample, SampleRecord

SQUARE = {"type": "square", "side": 8}
SIZES = [(8, 8), (8, 16), (16, 8)]


def vector(text: str) -> Conditioning:
    """Stand in for an encoder: the text's own bytes, so that a batch shows which text it holds."""
    codes = torch.tensor([*text.encode(), 0], dtype=torch.float16)[None, :, None]
    return Conditioning(codes, codes[:, :1, 0])


def jpeg(picture: np.ndarray[Any, Any]) -> bytes:
    file = BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=95)
    return file.getvalue()


@lru_cache(maxsize=1)
def latent_store() -> Path:
    path = temporary_path()
    records = [SampleRecord(f"s{i}", (16, 16), {"zh_original": f"z{i}", "en_synthetic": f"e{i}"}) for i in range(11)]
    write_store(
        path,
        (
            Sample(
                record,
                latents=torch.full((2, 2, 2), float(i)).half(),
                conditioning={key: vector(text) for key, text in [*record.captions.items(), (NO_CAPTION, "")]},
                size=(16, 16, 0, 2, 8, 8),
            )
            for i, record in enumerate(records)
        ),
        shard_rows=4,
    )
    return path


@lru_cache(maxsize=1)
def picture_store() -> Path:
    """Photographs of many shapes, kept as they came and put into no group."""
    path, random = temporary_path(), np.random.default_rng(0)

    def samples() -> Iterator[Sample]:
        for i in range(30):
            height, width = (int(side) for side in random.integers(8, 40, 2))
            picture = random.integers(0, 256, (height, width, 3), np.uint8)
            tags = {"level": str(i % 5 + 1), "kind": "text" if i % 7 == 0 else "photo", "name": f"n{i}"}
            yield Sample(SampleRecord(f"p{i}", (height, width), {"en_original": f"{i}"}, tags), jpeg(picture))

    write_store(path, samples(), shard_rows=8)
    return path


def build(path: Path, **settings: Any) -> ZarrDataSource:
    return ZarrSource.model_validate({"path": str(path), **settings}).build(BuildContext())


def images(**settings: Any) -> ZarrDataSource:
    return build(tiny_store(), **{"buckets": SQUARE} | settings)


def latents(**settings: Any) -> ZarrDataSource:
    return build(latent_store(), **{"pictures": "latents", "text": "conditioning"} | settings)


def pictures(**settings: Any) -> ZarrDataSource:
    return build(picture_store(), **{"buckets": {"type": "sizes", "table": SIZES}} | settings)


def ids(batches: list[Any]) -> list[list[str]]:
    return [[record.id for record in batch.records] for batch in batches]


def assert_same(found: list[Any], wanted: list[Any]) -> None:
    assert ids(found) == ids(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.captions == other.captions
        assert one.keys == other.keys
        for name in ("size", "weight", "images", "latents"):
            first, second = getattr(one, name), getattr(other, name)
            assert (first is None) == (second is None)
            assert first is None or torch.equal(first, second)
        if one.conditioning is not None:
            assert torch.equal(one.conditioning.tokens, other.conditioning.tokens)


def test_a_rank_outside_the_world_is_refused() -> None:
    for wrong in ({"rank": 2, "world": 2}, {"rank": -1}, {"skip": -1}):
        with pytest.raises(ValueError, match="need 0 <= rank"):
            next(images().batches(seed=0, epoch=0, **wrong))


def test_resuming_by_skip_gives_the_batches_of_an_uninterrupted_run() -> None:
    for whole, rest in ((latents(batch=3), latents(batch=3)), (pictures(batch=4), pictures(batch=4, threads=0))):
        uninterrupted = list(whole.batches(seed=5, epoch=1))
        assert_same(list(rest.batches(seed=5, epoch=1, skip=2)), uninterrupted[2:])


def test_skipping_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    source, read = images(batch=2), list[int]()
    original = source.store.read_views
    monkeypatch.setattr(
        source.store, "read_views", lambda c, numbers: read.append(len(numbers)) or original(c, numbers)
    )
    list(source.batches(seed=0, epoch=0, skip=2))
    assert read == [2]


def test_copies_that_fill_the_last_batch_weigh_nothing() -> None:
    source = images(batch=4)
    batches = list(source.batches(seed=3, epoch=0))
    assert [batch.weight.tolist() for batch in batches] == [[1, 1, 1, 1], [1, 1, 0, 0]]
    shared = [list(source.batches(seed=3, epoch=0, rank=rank, world=4)) for rank in range(4)]
    assert [[batch.weight.sum() for batch in of_rank] for of_rank in shared] == [[4], [2], [0], [0]]


def test_pictures_are_what_the_file_shows() -> None:
    for batch in images(batch=6).batches(seed=0, epoch=0):
        assert batch.images is not None and batch.images.dtype == torch.uint8
        assert batch.size.tolist() == [[8, 8, 0, 0, 8, 8]] * 6
        for record, image in zip(batch.records, batch.images, strict=True):
            wanted = torch.tensor(Image.new("RGB", (1, 1), record.id).getpixel((0, 0)))
            assert torch.equal(image, wanted[:, None, None].expand(3, 8, 8))


def test_pictures_go_to_the_bucket_whose_shape_is_nearest_and_are_cut_where_the_batch_says() -> None:
    seen = Counter[tuple[int, int]]()
    for batch in pictures(batch=4, crop="random").batches(seed=0, epoch=0):
        assert batch.images is not None
        bucket = (batch.images.shape[2], batch.images.shape[3])
        for record, size, weight in zip(batch.records, batch.size.tolist(), batch.weight.tolist(), strict=True):
            height, width = record.size
            loss = [abs(np.log(height / width) - np.log(h / w)) for h, w in SIZES]
            assert SIZES[int(np.argmin(loss))] == bucket
            assert size[:2] == [height, width]
            assert tuple(size[4:]) == bucket
            scale = max(bucket[0] / height, bucket[1] / width)
            for start, side, end in zip(size[2:4], record.size, bucket, strict=True):
                assert 0 <= start <= side * scale - end + 1
            seen[bucket] += weight > 0
    assert seen.total() == 30
    assert set(seen) == set(SIZES)


def test_a_crop_is_another_in_each_epoch_or_the_middle_always() -> None:
    def corners(epoch: int, crop: str) -> dict[str, list[float]]:
        batches = list(pictures(batch=30, crop=crop).batches(seed=0, epoch=epoch))
        return {r.id: s for b in batches for r, s in zip(b.records, b.size[:, 2:4].tolist(), strict=True)}

    assert corners(0, "random") != corners(1, "random")
    middle = corners(0, "centre")
    assert middle == corners(1, "centre")
    random = [corners(epoch, "random") for epoch in range(40)]
    mean = {name: np.mean([epoch[name] for epoch in random], axis=0) for name in middle}
    assert max(np.abs(mean[name] - middle[name]).max() for name in middle) < 4


def test_captions_are_those_the_mix_chooses() -> None:
    for captions, wanted in (
        ({"type": "mix", "dropout": 0, "chinese": 1, "synthetic": 1}, "zh_synthetic"),
        ({"type": "mix", "dropout": 0, "chinese": 0, "synthetic": 0}, "en_original"),
        ({"type": "mix", "dropout": 1}, NO_CAPTION),
    ):
        for batch in images(captions=captions).batches(seed=0, epoch=0):
            assert batch.captions == [dict(record.captions).get(wanted, "") for record in batch.records]
            assert set(batch.keys) == {wanted}


def test_choosing_captions_reads_those_that_are_given_out_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    source, read = images(batch=6, captions={"type": "mix", "dropout": 0}), list[tuple[str, int]]()
    original = source.store._texts

    def spied(column: str, asked: Any, faults: dict[int, str]) -> list[str | None]:
        read.append((column, len(asked.wanted)))
        return original(column, asked, faults)

    monkeypatch.setattr(source.store, "_texts", spied)
    (batch,) = source.batches(seed=0, epoch=0)
    assert sum(count for column, count in read if column.startswith("caption_")) == len(batch.keys) == 6


class OneByOne:
    """A caption mix that offers no more than it must."""

    def __init__(self, mix: CaptionMix) -> None:
        self._mix = mix

    def choose(self, record: SampleRecord, *, seed: int, epoch: int) -> str:
        return self._mix.choose(record, seed=seed, epoch=epoch)


def test_a_mix_that_chooses_for_a_batch_chooses_what_it_would_for_each_sample() -> None:
    source, plain = images(), images()
    plain._readers._fill = replace(plain._readers._fill, mix=OneByOne(plain.mix))  # type: ignore[arg-type,type-var]
    together, one_by_one = (
        [batch.keys for epoch in range(4) for batch in each.batches(seed=2, epoch=epoch)] for each in (source, plain)
    )
    assert together == one_by_one
    assert len({key for keys in together for key in keys}) > 2


def test_a_caption_of_a_whole_batch_is_had_without_its_records() -> None:
    for batch in images(batch=4).batches(seed=0, epoch=0):
        for key in ("en_original", "zh_synthetic"):
            found = batch.records.captions(key)  # type: ignore[attr-defined]
            assert [text or "" for text in found] == [dict(each.captions).get(key, "") for each in batch.records]


def test_stored_conditioning_is_that_of_the_chosen_caption() -> None:
    seen = Counter[str]()
    source = latents(batch=4)
    for epoch in range(8):
        for batch in source.batches(seed=0, epoch=epoch):
            assert batch.captions is None and batch.images is None
            assert batch.conditioning is not None
            assert batch.conditioning.tokens.dtype == torch.float16
            for record, codes in zip(batch.records, batch.conditioning.tokens[..., 0].tolist(), strict=True):
                key = source.mix.choose(record, seed=0, epoch=epoch)
                assert bytes(int(code) for code in codes if code).decode() == record.captions.get(key, "")
                seen[key] += 1
    assert set(seen) == {"zh_original", "en_synthetic", NO_CAPTION}


def test_latents_keep_the_size_they_were_made_at_and_the_dtype_they_are_stored_in() -> None:
    for batch in latents(batch=4, buckets={"type": "square", "side": 999}).batches(seed=0, epoch=0):
        assert batch.latents is not None and batch.latents.dtype == torch.float16
        assert batch.size.tolist() == [[16, 16, 0, 2, 8, 8]] * 4
        assert [f"s{int(latent[0, 0, 0])}" for latent in batch.latents] == [record.id for record in batch.records]


def test_parts_are_every_sample_once_as_stored() -> None:
    source = images(batch=4)
    parts = source.parts(5)
    assert parts == [Part("8x8-000000", (8, 8), range(5)), Part("8x8-000001", (8, 8), range(5, 6))]
    batches = [batch for part in parts for batch in source.read(part)]
    assert ids(batches) == [["red", "green", "blue", "yellow"], ["black"], ["white"]]
    assert all(batch.captions is None and batch.weight.all() for batch in batches)
    assert [record.id for record in source.records()] == ["red", "green", "blue", "yellow", "black", "white"]


def test_parts_hold_pictures_of_one_size_and_only_those_selected() -> None:
    source = pictures(filters=[{"type": "level", "at_least": 4}], batch=2)
    parts = source.parts(3)
    assert {part.size for part in parts} == set(SIZES)
    found = [(record, part.size) for part in parts for batch in source.read(part) for record in batch.records]
    assert {record.id for record, _ in found} == {f"p{i}" for i in range(30) if i % 5 >= 3}
    assert len(found) == 12
    for part in parts:
        for batch in source.read(part):
            assert batch.images is not None and tuple(batch.images.shape[2:]) == part.size


def test_stored_pixels_are_given_out_as_they_are(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    pixels = {f"x{i}": torch.randint(0, 256, (3, *SIZES[i % 3]), generator=random, dtype=torch.uint8) for i in range(7)}
    write_store(
        tmp_path / "s",
        (
            Sample(
                SampleRecord(name, (90, 90), {"en_original": "a"}), pixels=each, size=(90, 90, 1, 2, *each.shape[1:])
            )
            for name, each in pixels.items()
        ),
    )
    source = build(tmp_path / "s", buckets={"type": "sizes", "table": SIZES}, batch=2)
    for batch in source.batches(seed=0, epoch=0):
        assert batch.images is not None
        for record, image, size in zip(batch.records, batch.images, batch.size.tolist(), strict=True):
            assert torch.equal(image, pixels[record.id])
            assert size == [90, 90, 1, 2, *image.shape[1:]]
    with pytest.raises(DataError, match="holds pixels of 8x16, 16x8, which are none of the buckets"):
        build(tmp_path / "s", buckets=SQUARE)


def test_filters_choose_the_samples() -> None:
    found = pictures(filters=[{"type": "tags", "where": {"kind": ["photo"]}}, {"type": "level", "at_least": 3}])
    wanted = {f"p{i}" for i in range(30) if i % 7 and i % 5 >= 2}
    assert {record.id for record in found.records()} == wanted
    assert found.report().dropped == {
        "tags: its tag 'kind' is 'text', not photo": 5,
        "level: its level is 1, below 3": 5,
        "level: its level is 2, below 3": 30 - 5 - 5 - len(wanted),
    }


def test_no_sample_left_names_filters_and_reasons() -> None:
    with pytest.raises(DataError, match=r"no sample of .* is left of 6: .*tags: its tag 'split' is 'train'.* \(6\)"):
        images(filters=[{"type": "tags", "where": {"split": ["test"]}}])


def test_a_stage_refuses_samples_that_it_must_not_see() -> None:
    unwritten = {"type": "tags", "without": {"kind": ["text"]}}
    with pytest.raises(DataError, match=r"'tags' must keep .* drops 5 of 30: its tag 'kind' is 'text'; .* 'p0', 'p7'"):
        pictures(requires=[unwritten])
    assert len(pictures(requires=[unwritten], filters=[unwritten]).records()) == 25


def test_classes_can_count_the_same_in_the_loss() -> None:
    source = pictures(balance="kind", batch=4)
    weights: dict[str, float] = Counter()
    counted = Counter[str]()
    for batch in source.batches(seed=0, epoch=0):
        for record, weight in zip(batch.records, batch.weight.tolist(), strict=True):
            weights[record.tags["kind"]] += weight
            counted[record.id] += weight > 0
    assert weights == pytest.approx({"text": 15, "photo": 15})
    assert set(counted.values()) == {1}


def test_what_cannot_be_balanced_is_said() -> None:
    with pytest.raises(DataError, match="cannot be balanced by 'style': its index has the tags split"):
        images(balance="style")


def test_a_tag_that_the_index_cannot_have_is_not_balanced_by_for_a_reason_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_writing, "MOST_VALUES", 2)
    tags = [{"kind": "a", "name": f"n{i}", "two words": "b"} for i in range(3)]
    samples = [Sample(SampleRecord(f"{i}", (8, 8), {}, tags[i]), latents=torch.zeros(1, 1, 1)) for i in range(3)]
    write_store(tmp_path / "s", samples)
    for tag, why in (("name", "it has more than 4,096 values"), ("two words", "a name in the index is of letters")):
        with pytest.raises(DataError, match=f"cannot be balanced by '{tag}': {why}"):
            build(tmp_path / "s", pictures="latents", balance=tag)


def test_pictures_without_a_bucket_are_reported_by_name_and_reason(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        source = pictures(buckets={"type": "sizes", "table": SIZES, "min_side": 12})
    small = [record.id for record in pictures().records() if min(record.size) < 12]
    assert small
    ((count, first),) = source.report().refused
    assert count == len(small)
    assert [f"'{name}': it is" in line for name, line in zip(small, first, strict=False)] == [True] * len(first)
    assert f"no bucket for {count}: '{small[0]}': it is" in caplog.text
    assert sum(source.report().buckets.values()) == 30 - count
    assert {record.id for record in source.records()}.isdisjoint(small)


def test_what_was_found_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        source = latents(batch=4)
        for epoch in range(3):
            list(source.batches(seed=0, epoch=epoch))
    messages = [record.getMessage() for record in caplog.records]
    assert [message.split(": ", 1)[1] for message in messages] == [
        "11 of 11 samples, 8x8 (11)",
        messages[1].split(": ", 1)[1],
        "3 steps an epoch, 1 copies of weight 0",
        "captions of the first epoch: en_synthetic 54.5%, zh_original 45.5%",
    ]
    assert source.report().lacking == {"caption": 0, "en": 0, "original": 0, "synthetic": 0, "zh": 0}
    assert source.report().captions == {"en_synthetic": 11, "zh_original": 11}


def test_pictures_without_captions_have_the_empty_one_and_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_store(tmp_path / "s", [Sample(SampleRecord("bare", (8, 8), {}), jpeg(np.zeros((8, 8, 3), np.uint8)))])
    with caplog.at_level(logging.INFO):
        source = build(tmp_path / "s", batch=1)
    (batch,) = source.batches(seed=0, epoch=0)
    assert (batch.captions, batch.keys) == ([""], [NO_CAPTION])
    assert source.report().lacking == dict.fromkeys(("caption", "en", "original", "synthetic", "zh"), 1)
    assert "captions: no caption (1)" in caplog.text


def test_pictures_that_keep_their_size_are_of_a_size_that_was_announced() -> None:
    buckets = {"type": "sizes", "table": [(16, 16), (16, 32), (32, 16)], "no_upscale": True, "step": 2}
    source = pictures(buckets=buckets, batch=1)
    announced = ZarrSource.model_validate({"path": str(picture_store()), "buckets": buckets}).picture_sizes()
    found = {tuple(batch.images.shape[2:]) for batch in source.batches(seed=0, epoch=0) if batch.images is not None}
    assert found <= set(announced)
    assert not found <= {(16, 16), (16, 32), (32, 16)}


def test_what_the_store_has_not_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="has no latents; it has captions, images"):
        images(pictures="latents")
    with pytest.raises(DataError, match="has no conditioning; it has captions, images"):
        images(text="conditioning")
    with pytest.raises(DataError, match="has no images; it has captions, conditioning, latents"):
        build(latent_store())


def test_a_picture_that_is_no_picture_is_named_with_its_store(tmp_path: Path) -> None:
    write_store(tmp_path / "s", [Sample(SampleRecord("bad", (8, 8), {"en_original": "a"}), b"not a picture")])
    with pytest.raises(DataError, match=rf"sample 'bad' in {tmp_path}/s cannot be decoded"):
        next(build(tmp_path / "s").batches(seed=0, epoch=0))


def test_a_batch_can_be_changed_without_changing_the_next_epoch() -> None:
    source = images(batch=6)
    (first,) = source.batches(seed=0, epoch=0)
    assert first.images is not None
    kept = first.images.clone()
    first.images.zero_()
    (again,) = source.batches(seed=0, epoch=0)
    assert again.images is not None
    assert torch.equal(again.images, kept)


def test_ports_and_sizes_follow_the_settings() -> None:
    config = ZarrSource.tiny()
    assert config.ports() == {"images", "captions"}
    assert list(config.picture_sizes()) == [(8, 8)]
    other = config.model_copy(update={"pictures": "latents", "text": "conditioning"})
    assert other.ports() == {"latents", "conditioning"}
    assert list(other.picture_sizes()) == []


def test_a_path_is_resolved_from_its_recipe_and_a_url_is_kept(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    assert ZarrSource(path=RecipePath("data", tmp_path)).path == str(tmp_path / "data")
    assert ZarrSource(path=RecipePath("s3://bucket/set", tmp_path)).path == "s3://bucket/set"
    with pytest.raises(ValidationError, match=f"path\n  there is no file or folder {tmp_path}/none"):
        ZarrSource(path=RecipePath("none", tmp_path))


def test_a_store_in_memory_is_read_by_its_url() -> None:
    write_store("memory://loading-test/set", (Sample(each, jpeg(np.zeros((8, 8, 3), np.uint8))) for each in RECORDS))
    source = ZarrSource(path="memory://loading-test/set", buckets=SQUARE, batch=2).build(BuildContext())
    assert [sorted(batch) for batch in ids(list(source.batches(seed=0, epoch=0)))] == [["m0", "m1"]]


RECORDS = [SampleRecord(f"m{i}", (8, 8), {"en_original": f"{i}"}) for i in range(2)]


def test_a_store_in_memory_is_for_one_process_and_that_is_said_when_a_recipe_is_checked() -> None:
    assert ZarrSource(path="memory://here", threads=2).processes == 0
    with pytest.raises(ValidationError, match=r"memory://here is in the memory of this process.*; set processes: 0"):
        ZarrSource(path="memory://here", processes=1)


def test_a_sink_writes_below_the_run_and_a_source_reads_it(tmp_path: Path) -> None:
    ctx = BuildContext(out=tmp_path)
    sink = ZarrSink(path="new", shard=2).build(ctx)
    source = images()
    parts = source.parts(sink.part_size)
    sink.missing(parts)
    for part in parts:
        batches: list[Batch] = list(source.read(part))
        sink.write(part, [Sample(r, latents=torch.zeros(1, 2, 2)) for batch in batches for r in batch.records])
    assert sink.publish(parts) == 6
    assert len(build(tmp_path / "new", pictures="latents").records()) == 6


def test_an_epoch_goes_on_where_it_was_left_in_other_batches() -> None:
    source, smaller = latents(batch=2), latents(batch=3)
    begun = [batch for rank in range(2) for batch in list(source.batches(seed=0, epoch=0, rank=rank, world=2))[:1]]
    rest = list(smaller.batches(seed=0, epoch=0, before=[(0, 2, 2, 1)]))
    counted = Counter[str]()
    for batch in [*begun, *rest]:
        counted.update(r.id for r, weight in zip(batch.records, batch.weight.tolist(), strict=True) if weight)
    assert counted == Counter(f"s{i}" for i in range(11))
