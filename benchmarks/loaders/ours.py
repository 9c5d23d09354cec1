"""This project's zarr source, checksums on: read ahead by `threads` or `processes`, or when asked for.

Both captions are delivered, as by every peer, and none is chosen: the mix drops them all. `chosen` delivers the one
that the mix chooses, which is what a training gets. `reader` asks the store for encoded pictures, which the source
decodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from kolors_captioners.config import Mix
from kolors_zarr.buckets_config import OwnBuckets
from kolors_zarr.config import ZarrSource
from kolors_zarr.loading.batches import LazyRecords, ZarrBatch
from kolors_zarr.store.layout import CAPTION
from kolors_zarr.store.places import open_place
from kolors_zarr.store.reading import Store
from kolors_zarr.store.writing import write_store

from benchmarks.loaders import map_style
from benchmarks.loaders.batch import Batch, Epochs, Setting, pack
from benchmarks.loaders.source import Array, Source, captions
from kolors_kernel import BuildContext
from kolors_kernel.values import Sample, SampleRecord

packages: Sequence[str] = ("kolors-kernel",)
STORE = "samples.zarr"


def write(setting: Setting, store: Path) -> None:
    """Write the samples as any import does."""
    if setting.task == "latents":
        write_store(store / STORE, _samples(setting))
    else:
        sizes = _sizes(setting)
        write_store(store / STORE, _samples(setting), size_of=lambda sample: sample.record.size, buckets=sizes)


def _sizes(setting: Setting) -> list[tuple[int, int]]:
    return sorted({(height, width) for height, width in Source(setting.source).sizes.tolist()})


def _samples(setting: Setting) -> Iterator[Sample]:
    source = Source(setting.source)
    for number, (height, width) in enumerate(source.sizes.tolist()):
        texts = dict(zip(("en_original", "zh_synthetic"), captions(number), strict=True))
        if setting.task == "latents":
            latents = torch.tensor(source.latents[number])
            yield Sample(SampleRecord(f"{number:06d}", (8 * height, 8 * width), texts), latents=latents)
        else:
            record = SampleRecord(f"{number:06d}", (height, width), texts)
            yield Sample(record, image=source.content(number))


def epochs(store: Path, setting: Setting) -> Epochs:
    """Return the loader."""
    if setting.task == "bytes":
        return map_style.epochs(partial(Reader, store), setting)
    chosen = setting.option.endswith("chosen")
    source = ZarrSource(
        path=str(store / STORE),
        pictures="latents" if setting.task == "latents" else "images",
        buckets=OwnBuckets(table=_sizes(setting)),
        batch=setting.size,
        captions=Mix(dropout=0 if chosen else 1),
        threads=setting.workers,
        processes=setting.workers if setting.option.startswith("processes") else 0,
    ).build(BuildContext())
    deliver = _chosen if chosen else _both
    return lambda number: map(deliver, source.batches(seed=0, epoch=number))


def _both(batch: ZarrBatch) -> Batch:
    content, real = _content(batch)
    assert isinstance(batch.records, LazyRecords)
    original, synthetic = (map(str, batch.records.captions(key)[:real]) for key in ("en_original", "zh_synthetic"))
    return Batch(content, None, list(original), list(synthetic))


def _chosen(batch: ZarrBatch) -> Batch:
    content, real = _content(batch)
    assert batch.captions is not None
    return Batch(content, None, list(batch.captions[:real]), [])


def _content(batch: ZarrBatch) -> tuple[torch.Tensor, int]:
    """Return latents or pictures [B, h, w, 3] without the copies of weight 0 that fill up a last batch."""
    real = int(batch.weight.count_nonzero())
    if batch.latents is not None:
        return batch.latents[:real], real
    assert batch.images is not None
    return batch.images[:real].permute(0, 2, 3, 1), real


class Reader:
    """The store, which gives pictures out as they are encoded."""

    def __init__(self, store: Path) -> None:
        self.store = Store(open_place(str(store / STORE)))

    def read(self, numbers: Array) -> Batch:
        """Return the samples of these numbers."""
        where = self.store.locate(numbers)
        texts = [self.store.read_strings(CAPTION + key, where) for key in ("en_original", "zh_synthetic")]
        original, synthetic = (list(map(str, each)) for each in texts)
        return pack("bytes", self.store.read_views("image", where), original, synthetic)
