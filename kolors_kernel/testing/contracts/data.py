"""The contracts of data: captioner, caption mix, data source, data sink, sample filter."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from kolors_kernel.component import BuildContext
from kolors_kernel.errors import DataError
from kolors_kernel.kinds import CaptionerConfig, CaptionMixConfig, DataSinkConfig, DataSourceConfig, SampleFilterConfig
from kolors_kernel.protocols import DataSink
from kolors_kernel.testing.contracts.component import ComponentContract, examples
from kolors_kernel.testing.strategies import sample_records
from kolors_kernel.values import NO_CAPTION, Batch, Language, Part, Sample, SampleRecord


class CaptionerContract(ComponentContract[CaptionerConfig]):
    """What every captioner promises."""

    def images(self) -> list[Image.Image]:
        """Return pictures to describe: two sizes, two colours."""
        return [Image.new("RGB", (48, 32), "red"), Image.new("RGB", (32, 32), "navy")]

    @pytest.mark.parametrize("language", ["zh", "en"])
    def test_describes_each_picture_in_one_text(self, tmp_path: Path, language: Language) -> None:
        """As many texts as pictures, each of them text, and the pictures are left alone."""
        captioner, images = self.config.build(self.context(tmp_path)), self.images()
        texts = captioner.caption(images, language)
        assert len(texts) == len(images)
        assert all(isinstance(text, str) and text.strip() for text in texts)
        assert [image.tobytes() for image in images] == [image.tobytes() for image in self.images()]

    def test_describes_no_pictures_with_no_texts(self, tmp_path: Path) -> None:
        """An empty batch is not an error."""
        assert self.config.build(self.context(tmp_path)).caption([], "en") == []


class CaptionMixContract(ComponentContract[CaptionMixConfig]):
    """What every caption mix promises."""

    @examples(60)
    @given(record=sample_records(), seed=st.integers(0, 2**31), epoch=st.integers(0, 1000))
    def test_chooses_a_caption_that_is_there(self, record: SampleRecord, seed: int, epoch: int) -> None:
        """The key of a caption that is not empty, or NO_CAPTION; the same again from another object."""
        first, second = (self.config.build(BuildContext()) for _ in range(2))
        key = first.choose(record, seed=seed, epoch=epoch)
        assert key == NO_CAPTION or record.captions.get(key)
        assert second.choose(record, seed=seed, epoch=epoch) == key == first.choose(record, seed=seed, epoch=epoch)

    def test_has_nothing_to_choose_from_nothing(self) -> None:
        """A sample without captions is trained without text."""
        record = SampleRecord("bare", (8, 8), {})
        assert self.config.build(BuildContext()).choose(record, seed=0, epoch=0) == NO_CAPTION


class SampleFilterContract(ComponentContract[SampleFilterConfig]):
    """What every sample filter promises."""

    @examples(60)
    @given(record=sample_records())
    def test_keeps_or_says_why_not(self, record: SampleRecord) -> None:
        """None or a reason in words, the same each time."""
        chosen = self.config.build(BuildContext())
        reason = chosen.reason_to_drop(record)
        assert reason is None or (isinstance(reason, str) and reason.strip())
        assert chosen.reason_to_drop(record) == reason


class DataSourceContract(ComponentContract[DataSourceConfig]):
    """What every data source promises. `tiny()` brings its own few samples."""

    def epoch(self, epoch: int = 0, seed: int = 0, rank: int = 0, world: int = 1, skip: int = 0) -> list[Batch]:
        """Return the batches of one epoch from a source built anew."""
        source = self.config.build(BuildContext())
        return list(source.batches(seed=seed, epoch=epoch, rank=rank, world=world, skip=skip))

    def test_fills_the_ports_it_names(self) -> None:
        """Each batch has what `ports` says, no more, with as many rows as records."""
        batches, ports = self.epoch(), self.config.ports()
        assert batches
        for batch in batches:
            rows = len(batch.records)
            filled = {
                name for name in ("images", "latents", "captions", "conditioning") if getattr(batch, name) is not None
            }
            assert filled == ports
            assert batch.size.shape == (rows, 6)
            assert batch.weight.shape == (rows,)
            assert all(part.shape[0] == rows for part in _tensors(batch))
            assert batch.captions is None or len(batch.captions) == rows
            if batch.images is not None:
                assert batch.images.dtype == torch.uint8
                assert batch.images.ndim == 4
                assert batch.images.shape[1] == 3
                assert batch.images.shape[2:] == tuple(batch.size[0, 4:].tolist())
                assert tuple(batch.images.shape[2:]) in self.config.picture_sizes()

    def test_order_comes_from_seed_and_epoch_alone(self) -> None:
        """Opened again, the same seed and epoch give the same batches, bit for bit."""
        state = torch.get_rng_state()
        _assert_same(self.epoch(epoch=3, seed=1), self.epoch(epoch=3, seed=1))
        assert torch.equal(state, torch.get_rng_state())

    def test_resuming_is_skipping(self) -> None:
        """Leaving out the first batches leaves the others as they were."""
        whole = self.epoch(epoch=1)
        for skip in (1, len(whole), len(whole) + 3):
            _assert_same(self.epoch(epoch=1, skip=skip), whole[skip:])

    def test_ranks_share_the_epoch_between_them(self) -> None:
        """Two ranks see together what one sees alone, in as many batches each; padding copies weigh 0."""
        ranks = [self.epoch(rank=rank, world=2) for rank in range(2)]
        assert len(ranks[0]) == len(ranks[1])
        assert _counted(ranks[0] + ranks[1]) == _counted(self.epoch())

    def test_parts_are_the_whole_set_as_stored(self) -> None:
        """Where a source can be read in parts: every sample once, within the size asked for, the same each time."""
        source, again = (self.config.build(BuildContext()) for _ in range(2))
        if not hasattr(source, "parts"):
            return  # an ability that a source may have or not
        for most in (1, 4, 1000):
            parts = source.parts(most)
            assert parts == again.parts(most)  # type: ignore[attr-defined]
            assert all(0 < len(part.rows) <= most for part in parts)
            assert len({part.name for part in parts}) == len(parts)
            batches = [batch for part in parts for batch in source.read(part)]  # type: ignore[attr-defined]
            assert all(batch.captions is None and batch.weight.eq(1).all() for batch in batches)
            assert _counted(batches) == _counted(self.epoch())


def _tensors(batch: Batch) -> list[Tensor]:
    text = batch.conditioning
    parts = [batch.size, batch.weight, batch.images, batch.latents]
    parts += [] if text is None else [text.tokens, text.pooled, text.key_bias]
    return [part for part in parts if part is not None]


def _assert_same(found: list[Batch], wanted: list[Batch]) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert [r.id for r in one.records] == [r.id for r in other.records]
        assert list(one.captions or ()) == list(other.captions or ())
        assert all(map(torch.equal, _tensors(one), _tensors(other)))


def _counted(batches: list[Batch]) -> Counter[str]:
    rows = ((r.id, weight) for b in batches for r, weight in zip(b.records, b.weight.tolist(), strict=True))
    return Counter(name for name, weight in rows if weight > 0)


class DataSinkContract(ComponentContract[DataSinkConfig]):
    """What every data sink promises. Each `tiny()` names a place of its own that is free."""

    def samples(self, count: int = 3) -> Iterator[Sample]:
        """Yield samples to store: small PNG pictures with captions in both languages."""
        for i in range(count):
            encoded = io.BytesIO()
            Image.new("RGB", (16, 8), (80 * i, 0, 255 - 80 * i)).save(encoded, "PNG")
            captions = {"zh_original": f"第{i}张", "en_synthetic": f"number {i}"}
            yield Sample(SampleRecord(f"s{i}", (8, 16), captions, {"style": "flat"}), encoded.getvalue())

    def fresh(self) -> DataSinkConfig:
        """Return the same component with a free place."""
        return type(self.config).tiny()

    def parts(self) -> list[Part]:
        """Return a set in two parts of two samples."""
        return [Part(f"part-{i}", (8, 16), [2 * i, 2 * i + 1]) for i in range(2)]

    def write(self, sink: DataSink, part: Part) -> None:
        """Store the samples of a part."""
        sink.write(part, [sample for i, sample in enumerate(self.samples(4)) if i in part.rows])

    def test_counts_what_it_publishes(self, tmp_path: Path) -> None:
        """The number of samples comes back, from another object than the ones that wrote."""
        config, parts = self.fresh(), self.parts()
        assert config.build(self.context(tmp_path)).missing(parts) == parts
        for part in parts:
            self.write(config.build(self.context(tmp_path)), part)
        sink = config.build(self.context(tmp_path))
        assert list(sink.missing(parts)) == []
        assert sink.publish(parts) == 4

    def test_goes_on_where_it_was_left(self, tmp_path: Path) -> None:
        """What was written once, or twice, is not missing; what was not, is."""
        config, (first, second) = self.fresh(), self.parts()
        sink = config.build(self.context(tmp_path))
        sink.missing([first, second])
        self.write(sink, first)
        self.write(sink, first)
        assert config.build(self.context(tmp_path)).missing([first, second]) == [second]

    def test_refuses_a_place_that_is_taken(self, tmp_path: Path) -> None:
        """What was published before is never overwritten."""
        config, parts = self.fresh(), self.parts()
        sink = config.build(self.context(tmp_path))
        sink.missing(parts)
        for part in parts:
            self.write(sink, part)
        sink.publish(parts)
        with pytest.raises(DataError):
            config.build(self.context(tmp_path)).missing(parts)

    def test_stores_a_part_whole_or_not_at_all(self, tmp_path: Path) -> None:
        """A part whose samples fail in the middle is missing still, and can be written then."""

        def failing() -> Iterator[Sample]:
            yield from self.samples(1)
            raise RuntimeError("the picture is damaged")

        config, parts = self.fresh(), self.parts()
        sink = config.build(self.context(tmp_path))
        sink.missing(parts)
        with pytest.raises(RuntimeError, match="damaged"):
            sink.write(parts[0], failing())
        assert list(sink.missing(parts)) == parts
        for part in parts:
            self.write(sink, part)
        assert sink.publish(parts) == 4
