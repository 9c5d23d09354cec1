"""What the loading of a store promises, through the real source over real stores."""

from __future__ import annotations

import logging
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kolors_zarr.config import ZarrSource
from kolors_zarr.loading.source import ZarrDataSource
from kolors_zarr.store import reading
from kolors_zarr.store.places import Folder, open_place
from kolors_zarr.store.writing import write_store
from kolors_zarr.tiny import temporary_path
from PIL import Image

from kolors_kernel.component import BuildContext
from kolors_kernel.errors import DataError
from kolors_kernel.values import Sample, SampleRecord

COUNTS = {(8, 8): 23, (8, 16): 10, (16, 8): 1}
SIZES = list(COUNTS)
IDS = [f"{height}x{width}-{i}" for (height, width), count in COUNTS.items() for i in range(count)]
KEYS = ("zh_original", "en_original", "zh_synthetic", "en_synthetic")

worlds, sizes, seeds = st.integers(1, 5), st.integers(1, 7), st.integers(0, 2**32)


def numbered() -> Iterator[tuple[int, tuple[int, int], SampleRecord]]:
    """Yield samples of three sizes, some of them without synthetic captions."""
    for i, name in enumerate(IDS):
        height, width = (int(side) for side in name.split("-")[0].split("x"))
        keys = KEYS[: 2 if i % 4 == 0 else 4]
        tags = {"level": str(1 + i % 5)}
        yield i, (height, width), SampleRecord(name, (height, width), {key: f"{key} {i}" for key in keys}, tags)


@cache
def latents() -> str:
    """A store of latents in three groups, each row full of its sample's number."""
    path = temporary_path()
    samples = (
        Sample(record, latents=torch.full((1, height, width), i).half()) for i, (height, width), record in numbered()
    )
    write_store(path, samples, shard_rows=4)
    return str(path)


@cache
def photographs() -> str:
    """A store of encoded pictures twice as large as their bucket, with a little to be cut off."""
    path, noise = temporary_path(), np.random.default_rng(0)

    def samples() -> Iterator[Sample]:
        for _, (height, width), record in numbered():
            file, size = BytesIO(), (2 * height + 2, 2 * width + 7)
            Image.fromarray(noise.integers(0, 256, (*size, 3), np.uint8)).save(file, "PNG")
            yield Sample(SampleRecord(record.id, size, record.captions, record.tags), file.getvalue())

    write_store(path, samples(), shard_rows=8)
    return str(path)


def source(path: str, **changed: Any) -> ZarrDataSource:
    kind = {"pictures": "latents"} if path == latents() else {"buckets": {"type": "sizes", "table": SIZES}}
    return ZarrSource.model_validate({"path": path, **kind, **changed}).build(BuildContext())


def weighed(batches: list[Any]) -> Counter[str]:
    """Return the weight that each sample counts with; those of weight 0 are not listed."""
    found = Counter[str]()
    for batch in batches:
        for record, weight in zip(batch.records, batch.weight.tolist(), strict=True):
            found[record.id] += weight
    return +found


def shape(batch: Any) -> tuple[int, ...]:
    return tuple(batch.latents.shape[2:])


@settings(max_examples=25, deadline=None)
@given(batch=sizes, world=worlds, threads=st.integers(0, 3), seed=seeds, epoch=st.integers(0, 50), data=st.data())
def test_g1_every_sample_counts_once_in_an_epoch_however_it_is_shared_and_wherever_it_was_broken_off(
    batch: int, world: int, threads: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    before, done = list[tuple[int, int, int, int]](), list[Any]()
    for _ in range(data.draw(st.integers(0, 2))):
        share = data.draw(st.tuples(sizes, worlds))
        earlier = source(latents(), batch=share[0], threads=threads)
        where = {"seed": seed, "epoch": epoch, "world": share[1], "before": before}
        ranks = [list(earlier.batches(rank=rank, **where)) for rank in range(share[1])]
        steps = data.draw(st.integers(0, len(ranks[0])))
        done += [each for of_rank in ranks for each in of_rank[:steps]]
        before = [*before, (epoch, *share, steps)]
    last = source(latents(), batch=batch, threads=threads)
    where = {"seed": seed, "epoch": epoch, "world": world, "before": before}
    done += [each for rank in range(world) for each in last.batches(rank=rank, **where)]
    assert weighed(done) == Counter(IDS)


@settings(max_examples=15, deadline=None)
@given(batch=sizes, world=worlds, seed=seeds)
def test_g1_what_fills_no_batch_is_left_out_of_an_epoch_or_carried_over_and_nothing_else_is(
    batch: int, world: int, seed: int
) -> None:
    def epoch(remainder: str, number: int) -> Counter[str]:
        loading = source(latents(), batch=batch, remainder=remainder)
        where = {"seed": seed, "epoch": number, "world": world}
        return weighed([each for rank in range(world) for each in loading.batches(rank=rank, **where)])

    def of(size: tuple[int, int], found: Counter[str]) -> int:
        return sum(count for name, count in found.items() if name.startswith("{}x{}-".format(*size)))

    together = batch * world
    dropping, carrying = epoch("drop", 0), sum((epoch("carry", number) for number in range(4)), Counter[str]())
    assert set(dropping.values()) <= {1}
    for size, count in COUNTS.items():
        assert of(size, dropping) == count // together * together
        assert of(size, carrying) == 4 * count // together * together
    assert max(carrying.values(), default=4) <= 4


@settings(max_examples=25, deadline=None)
@given(batch=sizes, world=worlds, seed=seeds)
def test_g2_ranks_take_equal_steps_and_are_in_one_bucket_but_for_the_last_few(
    batch: int, world: int, seed: int
) -> None:
    loading = source(latents(), batch=batch)
    ranks = [list(loading.batches(seed=seed, epoch=0, rank=rank, world=world)) for rank in range(world)]
    assert len({len(of_rank) for of_rank in ranks}) == 1
    full = sum(count // (batch * world) for count in COUNTS.values())
    for step, together in enumerate(zip(*ranks, strict=True)):
        assert {shape(each) for each in together} <= COUNTS.keys()
        assert all(len(each.records) == batch for each in together)
        if step < full:
            assert len({shape(each) for each in together}) == 1
            assert all(each.weight.eq(1).all() for each in together)
        for each in together:  # a batch is of one bucket
            assert {record.id.split("-")[0] for record in each.records} == {"{}x{}".format(*shape(each))}


@settings(max_examples=8, deadline=None)
@given(seed=seeds, epoch=st.integers(0, 50), skip=st.integers(0, 3))
def test_g3_a_global_batch_is_the_same_however_it_is_divided_and_resumed(seed: int, epoch: int, skip: int) -> None:
    full = sum(count // 6 for count in COUNTS.values())

    def steps(batch: int, world: int, **where: Any) -> list[list[str]]:
        loading = source(latents(), batch=batch)
        ranks = [loading.batches(seed=seed, epoch=epoch, rank=rank, world=world, **where) for rank in range(world)]
        return [[record.id for each in step for record in each.records] for step in zip(*ranks, strict=True)]

    alone = steps(6, 1)[skip:full]
    for batch, world in ((3, 2), (2, 3), (1, 6)):
        assert steps(batch, world)[skip:full] == alone
        assert steps(batch, world, skip=skip)[: full - skip] == alone
        assert steps(batch, world, before=[(epoch, 6, 1, skip)])[: full - skip] == alone


def test_g3_another_store_or_another_choice_of_samples_has_another_fingerprint() -> None:
    level = {"type": "level", "at_least": 2}
    found = [source(latents()), source(photographs()), source(latents(), filters=[level])]
    assert len({each.fingerprint for each in found}) == 3
    assert source(latents(), batch=7, threads=0).fingerprint == found[0].fingerprint


@settings(max_examples=10, deadline=None)
@given(batch=sizes, world=worlds, threads=st.integers(0, 3), seed=seeds, epoch=st.integers(0, 50))
def test_g4_crops_and_captions_depend_on_seed_epoch_and_sample_alone(
    batch: int, world: int, threads: int, seed: int, epoch: int
) -> None:
    def given_to(batch: int, world: int, threads: int) -> dict[str, Any]:
        loading, found = source(photographs(), batch=batch, threads=threads), {}
        for rank in range(world):
            for each in loading.batches(seed=seed, epoch=epoch, rank=rank, world=world):
                assert each.images is not None and each.captions is not None
                rows = zip(each.records, each.images, each.size.tolist(), each.captions, strict=True)
                found |= {record.id: (image.numpy().tobytes(), size, text) for record, image, size, text in rows}
        return found

    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert given_to(batch, world, threads) == given_to(5, 1, 0)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states


def test_g4_processes_give_what_threads_do() -> None:
    loading = source(photographs(), batch=5, processes=1)
    found = list(loading.batches(seed=3, epoch=4))
    loading.close()
    for one, other in zip(found, source(photographs(), batch=5).batches(seed=3, epoch=4), strict=True):
        assert one.images is not None and other.images is not None
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.size, other.size)
        assert one.captions == other.captions


@settings(max_examples=12, deadline=None)
@given(data=st.data(), world=st.integers(1, 3))
def test_g5_no_damage_is_trained_on_and_it_shifts_no_rank(
    data: st.DataObject, world: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "s"
    samples = (Sample(r, latents=torch.full((1, h, w), i + 1).half()) for i, (h, w), r in numbered())
    write_store(path, samples, shard_rows=4)
    files = sorted((path / "samples").glob("*/latents/c/**/0"))
    file = data.draw(st.sampled_from([each for each in files if each.is_file()]))
    content = bytearray(file.read_bytes())
    place = data.draw(st.none() | st.integers(0, len(content) - 1))
    if place is None:
        file.unlink()
    else:
        content[place] ^= 1 << data.draw(st.integers(0, 7))
        file.write_bytes(content)
    settings = {"path": str(path), "pictures": "latents", "batch": 3}
    loading = ZarrSource.model_validate(settings).build(BuildContext())
    with pytest.raises(DataError, match=re.escape(str(file))):
        list(loading.batches(seed=0, epoch=0))
    replacing = ZarrSource.model_validate({**settings, "damaged": "replace"}).build(BuildContext(out=path.parent))
    ranks = [list(replacing.batches(seed=0, epoch=0, rank=rank, world=world)) for rank in range(world)]
    assert len({len(of_rank) for of_rank in ranks}) == 1
    counted = weighed([each for of_rank in ranks for each in of_rank])
    lost = Counter(IDS) - counted
    assert set(counted.values()) == {1} and 1 <= len(lost) <= 4
    assert replacing.report().damaged == len(lost) == len((path.parent / "quarantine.jsonl").read_text().splitlines())
    for each in (each for of_rank in ranks for each in of_rank):
        assert each.latents is not None
        assert [IDS[int(number) - 1] for number in each.latents[:, 0, 0, 0]] == [record.id for record in each.records]


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_g6_memory_is_bounded_and_the_bound_is_said_before_anything_is_read(
    threads: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        loading = source(latents(), batch=4, threads=threads)
    (said,) = [record.getMessage() for record in caplog.records if "at most" in record.getMessage()]
    slots = int(re.findall(r"(\d+) batches of", said)[0])
    places = set[int]()
    for epoch in range(3):
        for batch in loading.batches(seed=0, epoch=epoch):
            places.add(batch.size.untyped_storage().data_ptr())
            assert batch.size.untyped_storage().nbytes() == loading._readers.slot_bytes
            assert batch.latents is not None
            assert batch.latents.untyped_storage().data_ptr() == batch.size.untyped_storage().data_ptr()
    assert len(places) <= slots
    kept = list(loading.batches(seed=0, epoch=0))
    assert len({batch.size.untyped_storage().data_ptr() for batch in kept}) == len(kept)


@settings(max_examples=15, deadline=None)
@given(batch=sizes, seed=seeds, epoch=st.integers(0, 50))
def test_g7_the_caption_given_is_on_record_and_what_is_missing_is_counted(batch: int, seed: int, epoch: int) -> None:
    loading = source(latents(), batch=batch)
    chosen = Counter[str]()
    for each in loading.batches(seed=seed, epoch=epoch):
        assert each.captions is not None
        for record, key, text, weight in zip(each.records, each.keys, each.captions, each.weight, strict=True):
            assert text == record.captions.get(key, "")
            assert key == loading.mix.choose(record, seed=seed, epoch=epoch)
            chosen[key] += int(weight)
    report = loading.report()
    assert report.chosen == chosen
    lacking = sum(i % 4 == 0 for i in range(len(IDS)))
    assert report.lacking == {"caption": 0, "zh": 0, "en": 0, "original": 0, "synthetic": lacking}
    assert report.captions == {key: len(IDS) - lacking * ("synthetic" in key) for key in KEYS}


def test_g7_shares_of_the_captions_given_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    loading = source(latents(), captions={"dropout": 0, "synthetic": 0})
    for epoch in range(2):
        list(loading.batches(seed=0, epoch=epoch))
    (said,) = [record.message for record in caplog.records if "captions of the first epoch" in record.message]
    shares = dict(re.findall(r"(\w+) ([\d.]+)%", said))
    assert shares.keys() == {"zh_original", "en_original"}
    assert sum(map(float, shares.values())) == pytest.approx(100, abs=0.2)


def test_g7_what_no_sample_has_is_counted_too() -> None:
    record = SampleRecord("alone", (8, 8), {"en_original": "text"})
    path = temporary_path()
    write_store(path, [Sample(record, latents=torch.zeros(1, 8, 8).half())])
    assert source(str(path), pictures="latents").report().lacking == {"caption": 0, "en": 0, "original": 0} | {
        "zh": 1,
        "synthetic": 1,
    }


@pytest.mark.parametrize("made", [latents, photographs])
def test_g8_batches_are_the_same_from_any_place_and_by_zarr_itself(
    made: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"pictures": "latents"} if made is latents else {"buckets": {"type": "sizes", "table": SIZES}}
    folder, memory = Folder(Path(made())), open_place(f"memory://g8-{made.__name__}")
    for key in folder.keys(""):
        memory.write(key, folder.read(key))
    found = [source(made(), batch=5), source(memory.url, batch=5, **settings)]
    monkeypatch.setattr(reading, "reason_to_fall_back", lambda *_, **__: "to compare")
    found.append(source(made(), batch=5))
    one, *others = (list(each.batches(seed=1, epoch=2)) for each in found)
    for other in others:
        for wanted, batch in zip(one, other, strict=True):
            content, same = (b.latents if made is latents else b.images for b in (wanted, batch))
            assert content is not None and same is not None
            assert torch.equal(content, same)
            assert torch.equal(wanted.size, batch.size) and torch.equal(wanted.weight, batch.weight)
            assert wanted.captions == batch.captions
            assert list(wanted.records) == list(batch.records)
