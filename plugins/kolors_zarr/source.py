"""Training batches from a store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Generic, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor

from kolors_kernel.errors import DataError
from kolors_kernel.protocols import CaptionMix, SampleFilter
from kolors_kernel.values import NO_CAPTION, Batch, Conditioning, SampleRecord
from kolors_zarr.order import Plan
from kolors_zarr.pictures import decode, fit
from kolors_zarr.reader import Store

T = TypeVar("T")
_Picture: TypeAlias = tuple[Tensor, tuple[int, ...]]
"""Pixels in uint8 [3, H, W] or latents [C, h, w] as stored, and the row of `Batch.size` that belongs to them."""


class _Kept(Generic[T]):
    """What `read` gives for rows of a store; with `keep`, each row is read once and stays in memory."""

    def __init__(self, read: Callable[[list[int]], list[T]], *, keep: bool) -> None:
        self.read, self.keep = read, keep
        self.known: dict[int, T] = {}

    def __call__(self, rows: list[int]) -> list[T]:
        if not self.keep:
            return self.read(rows)
        new = [row for row in dict.fromkeys(rows) if row not in self.known]
        if new:
            self.known.update(zip(new, self.read(new), strict=True))
        return [self.known[row] for row in rows]


class ZarrDataSource:
    """Batches of the samples of a store that pass the filters, on the CPU in float32.

    Every sample counts once in each epoch. With `cache` everything read is kept in memory: 3 * resolution^2 bytes a
    picture, latents and conditioning as they are stored. Raises DataError when the store lacks what is asked for or
    no sample is left.
    """

    def __init__(
        self,
        store: Store,
        mix: CaptionMix,
        *,
        pictures: Literal["images", "latents"],
        text: Literal["captions", "conditioning"],
        resolution: int,
        batch: int,
        filters: Sequence[tuple[str, SampleFilter]] = (),
        cache: bool = True,
    ) -> None:
        self.store, self.mix, self.pictures, self.text = store, mix, pictures, text
        self.resolution, self.batch = resolution, batch
        self._require_stored()
        self.rows = _kept(store, filters)
        self._read = self._read_images if pictures == "images" else self._read_latents
        self._pictures = _Kept(self._read, keep=cache)
        self._texts = _Kept(store.conditioning, keep=cache)

    def records(self) -> list[SampleRecord]:
        """Return the records of the samples that passed, in stored order."""
        return [self.store.records[row] for row in self.rows]

    def batches(self, *, seed: int, epoch: int, rank: int = 0, world: int = 1, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches of one rank in one epoch, all of the same shape.

        Order and captions are pure functions of (seed, epoch); ranks share no sample; where samples run out, the last
        batch is filled with copies of weight 0. Raises DataError naming a damaged sample when it is reached.
        """
        plan = Plan(len(self.rows), self.batch, world)
        choose = partial(self.mix.choose, seed=seed, epoch=epoch)
        for positions, real in plan.batches(seed=seed, epoch=epoch, rank=rank, skip=skip):
            rows = [self.rows[position] for position in positions]
            keys = [choose(self.store.records[row]) for row in rows]
            captions = self._captions(rows, keys) if self.text == "captions" else None
            conditioning = self._conditioning(rows, keys) if self.text == "conditioning" else None
            yield self._batch(rows, self._pictures(rows), real, captions, conditioning)

    def in_order(self) -> Iterator[Batch]:
        """Yield every sample once in stored order, without text; the last batch holds what is left."""
        for start in range(0, len(self.rows), self.batch):
            rows = self.rows[start : start + self.batch]
            yield self._batch(rows, self._read(rows), len(rows), None, None)  # each is read once: nothing to keep

    def _batch(
        self,
        rows: list[int],
        pictures: list[_Picture],
        real: int,
        captions: list[str] | None,
        conditioning: Conditioning | None,
    ) -> Batch:
        pixels = torch.stack([picture for picture, _ in pictures])
        return Batch(
            records=[self.store.records[row] for row in rows],
            size=torch.tensor([size for _, size in pictures], dtype=torch.float32),  # [B, 6]
            weight=(torch.arange(len(rows)) < real).float(),
            images=pixels.float().div_(127.5).sub_(1) if self.pictures == "images" else None,
            latents=pixels.float() if self.pictures == "latents" else None,
            captions=captions,
            conditioning=conditioning,
        )

    def _read_images(self, rows: list[int]) -> list[_Picture]:
        read = list[_Picture]()
        for row, data in zip(rows, self.store.images(rows), strict=True):
            record = self.store.records[row]
            picture = decode(data, where=f"sample '{record.id}' in {self.store.path}")
            pixels, crop = fit(picture, self.resolution)
            read.append((torch.from_numpy(pixels), (*record.size, *crop, self.resolution, self.resolution)))
        return read

    def _read_latents(self, rows: list[int]) -> list[_Picture]:
        latents = self.store.latents(rows)
        return [(each, tuple(self.store.sizes[row].tolist())) for row, each in zip(rows, latents, strict=True)]

    def _captions(self, rows: list[int], keys: list[str]) -> list[str]:
        records = [self.store.records[row] for row in rows]
        return [record.captions[key] if key != NO_CAPTION else "" for record, key in zip(records, keys, strict=True)]

    def _conditioning(self, rows: list[int], keys: list[str]) -> Conditioning:
        for row, key in zip(rows, keys, strict=True):
            if key not in self.store.text_rows[row]:
                raise DataError(
                    f"{self.store.path} has no conditioning '{key}' for sample '{self.store.records[row].id}'; "
                    "precompute it again with every caption and the empty one"
                )
        texts = self._texts([self.store.text_rows[row][key] for row, key in zip(rows, keys, strict=True)])
        biases = [text.key_bias for text in texts if text.key_bias is not None]
        return Conditioning(
            tokens=torch.cat([text.tokens for text in texts]).float(),
            pooled=torch.cat([text.pooled for text in texts]).float(),
            key_bias=torch.cat(biases).float() if biases else None,
        )

    def _require_stored(self) -> None:
        for wanted in (self.pictures, self.text):
            if wanted not in self.store.holds:
                raise DataError(f"{self.store.path} has no {wanted}; it has {', '.join(sorted(self.store.holds))}")


def _kept(store: Store, filters: Sequence[tuple[str, SampleFilter]]) -> list[int]:
    """Return the rows that every filter keeps; what each one dropped is counted by its reason."""
    kept, dropped = [], Counter[str]()
    for row, record in enumerate(store.records):
        for name, filter in filters:
            reason = filter.reason_to_drop(record)
            if reason is not None:
                dropped[f"{name}: {reason}"] += 1
                break
        else:
            kept.append(row)
    if not kept:
        reasons = "; ".join(f"{reason} ({count})" for reason, count in dropped.most_common(5))
        raise DataError(f"no sample of {store.path} is left of {store.count}: {reasons}")
    return kept
