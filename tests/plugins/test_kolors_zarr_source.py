from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kolors_zarr.config import ZarrSource
from kolors_zarr.order import Plan, shuffled
from kolors_zarr.pictures import decode, fit
from kolors_zarr.source import ZarrDataSource
from kolors_zarr.tiny import temporary_path, tiny_store
from kolors_zarr.writer import ZarrStoreWriter
from PIL import Image

from kolors_kernel.component import BuildContext
from kolors_kernel.errors import DataError
from kolors_kernel.values import NO_CAPTION, Batch, Conditioning, Sample, SampleRecord


def encoded(image: Image.Image, format: str = "PNG", **settings: Any) -> bytes:
    file = BytesIO()
    image.save(file, format, **settings)
    return file.getvalue()


def vector(text: str) -> Conditioning:
    """Stand in for an encoder: the text's own bytes, so that a batch shows which text it holds."""
    codes = torch.zeros(1, 6, 1)
    codes[0, : len(text.encode()), 0] = torch.tensor(list(text.encode()), dtype=torch.float32)
    return Conditioning(codes.half(), codes[:, :1, 0].half())


@lru_cache(maxsize=1)
def latent_store() -> Path:
    path = temporary_path()
    records = [SampleRecord(f"s{i}", (16, 16), {"zh_original": f"z{i}", "en_synthetic": f"e{i}"}) for i in range(11)]
    ZarrStoreWriter(path).write(
        Sample(
            record,
            latents=torch.full((2, 2, 2), float(i)).half(),
            conditioning={key: vector(text) for key, text in [*record.captions.items(), (NO_CAPTION, "")]},
            size=(16, 16, 0, 2, 8, 8),
        )
        for i, record in enumerate(records)
    )
    return path


def images(**settings: Any) -> ZarrDataSource:
    return ZarrSource(path=tiny_store(), resolution=8, **settings).build(BuildContext())


def latents(**settings: Any) -> ZarrDataSource:
    config = ZarrSource(path=latent_store(), pictures="latents", text="conditioning", **settings)
    return config.build(BuildContext())


def ids(batches: list[Batch]) -> list[list[str]]:
    return [[record.id for record in batch.records] for batch in batches]


@settings(max_examples=200, deadline=None)
@given(
    count=st.integers(1, 60),
    batch=st.integers(1, 9),
    world=st.integers(1, 5),
    seed=st.integers(-5, 2**40),
    epoch=st.integers(0, 999),
    skip=st.integers(0, 8),
)
def test_an_epoch_is_every_sample_once_in_steps_of_one_shape(
    count: int, batch: int, world: int, seed: int, epoch: int, skip: int
) -> None:
    plan = Plan(count, batch, world)
    ranks = [list(plan.batches(seed=seed, epoch=epoch, rank=rank)) for rank in range(world)]
    assert {len(steps) for steps in ranks} == {plan.steps}
    assert all(len(positions) == batch for steps in ranks for positions, _ in steps)
    counted = Counter(p for steps in ranks for positions, real in steps for p in positions[:real])
    assert counted == Counter(range(count))
    for rank, steps in enumerate(ranks):
        assert list(plan.batches(seed=seed, epoch=epoch, rank=rank, skip=skip)) == steps[skip:]


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 60), batch=st.integers(1, 5), world=st.integers(1, 4), seed=st.integers(0, 99))
def test_the_ranks_of_a_step_make_the_batch_one_rank_would_have(count: int, batch: int, world: int, seed: int) -> None:
    alone = list(Plan(count, batch * world).batches(seed=seed, epoch=2))
    ranks = [list(Plan(count, batch, world).batches(seed=seed, epoch=2, rank=rank)) for rank in range(world)]
    steps = zip(*ranks, strict=True)
    together = [([p for positions, _ in step for p in positions], sum(real for _, real in step)) for step in steps]
    assert together == alone


def test_the_order_is_pinned() -> None:
    # A change here makes resumed runs see other samples than uninterrupted ones: it needs a note for users.
    assert shuffled(10, seed=0, epoch=0).tolist() == [8, 9, 7, 1, 0, 5, 3, 2, 4, 6]
    assert shuffled(10, seed=0, epoch=1).tolist() == [1, 9, 3, 6, 7, 2, 5, 4, 8, 0]


def test_orders_of_epochs_and_seeds_are_unrelated() -> None:
    orders = [shuffled(2000, seed=seed, epoch=epoch) for seed in range(3) for epoch in range(3)]
    correlations = np.corrcoef(np.stack([*orders, np.arange(2000)])) - np.eye(10)
    assert np.abs(correlations).max() < 0.1


def test_a_rank_outside_the_world_is_refused() -> None:
    for wrong in ({"rank": 2, "world": 2}, {"rank": -1}, {"skip": -1}):
        with pytest.raises(ValueError, match="need 0 <= rank"):
            next(images().batches(seed=0, epoch=0, **wrong))


def test_resuming_by_skip_gives_the_batches_of_an_uninterrupted_run() -> None:
    whole = list(latents(batch=3).batches(seed=5, epoch=1))
    for rest in (latents(batch=3, cache=False), latents(batch=3)):
        resumed = list(rest.batches(seed=5, epoch=1, skip=2))
        assert ids(resumed) == ids(whole[2:])
        for one, other in zip(resumed, whole[2:], strict=True):
            assert one.latents is not None and other.latents is not None
            assert one.conditioning is not None and other.conditioning is not None
            assert torch.equal(one.latents, other.latents)
            assert torch.equal(one.conditioning.tokens, other.conditioning.tokens)


def test_skipping_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    source, read = images(batch=2), []
    original = source.store.images
    monkeypatch.setattr(source.store, "images", lambda rows: read.append(list(rows)) or original(rows))
    list(source.batches(seed=0, epoch=0, skip=2))
    assert len(read) == 1
    list(source.batches(seed=0, epoch=0))
    assert sum(map(len, read)) == 6  # each picture once: what was read stays


def test_copies_that_fill_the_last_batch_weigh_nothing() -> None:
    source = images(batch=4)
    batches = list(source.batches(seed=3, epoch=0))
    assert [batch.weight.tolist() for batch in batches] == [[1, 1, 1, 1], [1, 1, 0, 0]]
    shared = [list(source.batches(seed=3, epoch=0, rank=rank, world=4)) for rank in range(4)]
    assert [[batch.weight.sum() for batch in of_rank] for of_rank in shared] == [[4], [2], [0], [0]]


def test_pictures_are_what_the_file_shows() -> None:
    for batch in images(batch=6).batches(seed=0, epoch=0):
        assert batch.images is not None and batch.images.dtype == torch.float32
        assert batch.size.tolist() == [[8, 8, 0, 0, 8, 8]] * 6
        for record, image in zip(batch.records, batch.images, strict=True):
            wanted = torch.tensor(Image.new("RGB", (1, 1), record.id).getpixel((0, 0))) / 127.5 - 1
            assert torch.equal(image, wanted[:, None, None].expand(3, 8, 8))


def test_captions_are_those_the_mix_chooses() -> None:
    for captions, wanted in (
        ({"type": "mix", "dropout": 0, "chinese": 1, "synthetic": 1}, "zh_synthetic"),
        ({"type": "mix", "dropout": 0, "chinese": 0, "synthetic": 0}, "en_original"),
        ({"type": "mix", "dropout": 1}, NO_CAPTION),
    ):
        for batch in images(captions=captions).batches(seed=0, epoch=0):
            assert batch.captions == [dict(record.captions).get(wanted, "") for record in batch.records]


def test_stored_conditioning_is_that_of_the_chosen_caption() -> None:
    seen = Counter[str]()
    source = latents(batch=4)
    for epoch in range(8):
        for batch in source.batches(seed=0, epoch=epoch):
            assert batch.captions is None and batch.images is None
            assert batch.conditioning is not None and batch.conditioning.key_bias is None
            assert batch.conditioning.tokens.dtype == torch.float32
            for record, codes in zip(batch.records, batch.conditioning.tokens[..., 0].tolist(), strict=True):
                key = source.mix.choose(record, seed=0, epoch=epoch)
                assert bytes(int(code) for code in codes if code).decode() == record.captions.get(key, "")
                seen[key] += 1
    assert set(seen) == {"zh_original", "en_synthetic", NO_CAPTION}


def test_latents_keep_the_size_they_were_made_at() -> None:
    for batch in latents(batch=4, resolution=999).batches(seed=0, epoch=0):
        assert batch.latents is not None and batch.latents.dtype == torch.float32
        assert batch.size.tolist() == [[16, 16, 0, 2, 8, 8]] * 4
        assert [f"s{int(latent[0, 0, 0])}" for latent in batch.latents] == [record.id for record in batch.records]


def test_in_order_is_every_sample_once_as_stored() -> None:
    batches = list(images(batch=4, cache=True).in_order())
    assert ids(batches) == [["red", "green", "blue", "yellow"], ["black", "white"]]
    assert all(batch.captions is None and batch.weight.all() for batch in batches)
    assert [len(batch.images) for batch in batches if batch.images is not None] == [4, 2]


def test_filters_choose_the_samples() -> None:
    filters = [{"type": "tags", "where": {"split": ["train"]}}]
    assert len(images(filters=filters).records()) == 6
    assert [record.id for record in images(filters=filters).records()][:2] == ["red", "green"]


def test_no_sample_left_names_filters_and_reasons() -> None:
    with pytest.raises(DataError, match=r"no sample of .* is left of 6: tags: its tag 'split' is 'train'.* \(6\)"):
        images(filters=[{"type": "tags", "where": {"split": ["test"]}}])


def test_what_the_store_has_not_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="has no latents; it has captions, images"):
        images(pictures="latents")
    with pytest.raises(DataError, match="has no conditioning; it has captions, images"):
        images(text="conditioning")
    with pytest.raises(DataError, match="has no images; it has captions, conditioning, latents"):
        ZarrSource(path=latent_store()).build(BuildContext())


def test_a_caption_without_stored_conditioning_is_named(tmp_path: Path) -> None:
    record = SampleRecord("lone", (8, 8), {"zh_original": "z"})
    sample = Sample(record, latents=torch.zeros(1, 1, 1), conditioning={NO_CAPTION: vector("")})
    ZarrStoreWriter(tmp_path / "s").write([sample])
    config = ZarrSource(
        path=tmp_path / "s", pictures="latents", text="conditioning", captions={"type": "mix", "dropout": 0}
    )
    with pytest.raises(DataError, match="no conditioning 'zh_original' for sample 'lone'"):
        next(config.build(BuildContext()).batches(seed=0, epoch=0))


def test_a_picture_that_is_no_picture_is_named_with_its_store(tmp_path: Path) -> None:
    ZarrStoreWriter(tmp_path / "s").write([Sample(SampleRecord("bad", (8, 8), {}), b"not a picture")])
    with pytest.raises(DataError, match=rf"sample 'bad' in {tmp_path}/s cannot be decoded"):
        next(ZarrSource(path=tmp_path / "s").build(BuildContext()).batches(seed=0, epoch=0))


def test_transparency_is_white() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    assert decode(encoded(clear), where="").getpixel((0, 0)) == (255, 255, 255)
    assert decode(encoded(clear, "WEBP", lossless=True), where="").getpixel((0, 0)) == (255, 255, 255)
    assert decode(encoded(half), where="").getpixel((0, 0)) == (255, 127, 127)
    assert decode(encoded(palette, transparency=0), where="").getpixel((0, 0)) == (255, 255, 255)


def test_a_picture_is_turned_as_its_camera_held_it() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    assert decode(encoded(Image.new("RGB", (6, 4)), "JPEG", exif=exif), where="").size == (4, 6)


def test_sixteen_bits_are_refused_rather_than_clipped() -> None:
    with pytest.raises(DataError, match="more than 8 bits"):
        decode(encoded(Image.new("I;16", (4, 4), 40000)), where="sample 'x'")


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 300), height=st.integers(1, 300), resolution=st.integers(1, 64))
def test_any_picture_fits_the_square_with_its_middle(width: int, height: int, resolution: int) -> None:
    pixels, (top, left) = fit(Image.new("RGB", (width, height), (9, 8, 7)), resolution)
    assert pixels.shape == (3, resolution, resolution)
    assert (pixels == np.array([9, 8, 7])[:, None, None]).all()
    assert min(top, left) == 0
    assert top == 0 or height > width
    assert left == 0 or width > height


def test_a_picture_of_the_right_size_is_not_resampled() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    pixels, crop = fit(Image.fromarray(noise), 16)
    assert crop == (0, 0)
    assert np.array_equal(pixels, noise.transpose(2, 0, 1))


def test_the_crop_is_reported_in_pixels_of_the_target() -> None:
    wide = np.zeros((16, 48, 3), np.uint8)
    wide[:, 16:32] = 255
    pixels, crop = fit(Image.fromarray(wide), 16)
    assert crop == (0, 16)
    assert (pixels == 255).all()


def test_a_batch_can_be_changed_without_changing_the_next_epoch() -> None:
    source = images(batch=6)
    (first,) = source.batches(seed=0, epoch=0)
    assert first.images is not None
    kept = replace(first, images=first.images.clone())
    first.images.zero_()
    (again,) = source.batches(seed=0, epoch=0)
    assert torch.equal(again.images, kept.images)  # type: ignore[arg-type]


def test_ports_follow_the_settings() -> None:
    config = ZarrSource.tiny()
    assert config.ports() == {"images", "captions"}
    assert config.model_copy(update={"pictures": "latents", "text": "conditioning"}).ports() == {
        "latents",
        "conditioning",
    }
