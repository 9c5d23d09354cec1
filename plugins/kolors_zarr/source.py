"""Training batches from a store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from kolors_kernel.errors import DataError
from kolors_kernel.protocols import CaptionMix, SampleFilter
from kolors_kernel.values import NO_CAPTION, Batch, Conditioning, SampleRecord
from kolors_zarr.order import Plan
from kolors_zarr.pictures import decode, fit
from kolors_zarr.reader import Store


class ZarrDataSource:
    """Batches of the samples of a store that pass the filters, on the CPU in float32.

    Every sample counts once in each epoch. With `cache` everything read is kept in memory: 3 * resolution^2 bytes a
    picture, the stored size of latents. Raises DataError when the store lacks what is asked for or no sample is left.
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
        self.resolution, self.batch, self.cache = resolution, batch, cache
        self._require_stored()
        self.rows = _kept(store, filters)
        self._kept_pictures: dict[int, tuple[Tensor, tuple[int, ...]]] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def steps_per_epoch(self, *, world: int = 1) -> int:
        """Return how many batches an epoch has on each rank."""
        return Plan(len(self.rows), self.batch, world).steps

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
            yield self._batch(rows, real, captions, conditioning)

    def in_order(self) -> Iterator[Batch]:
        """Yield every sample once in stored order, without text; the last batch holds what is left."""
        for start in range(0, len(self.rows), self.batch):
            rows = self.rows[start : start + self.batch]
            yield self._batch(rows, len(rows), None, None)

    def _batch(
        self, rows: list[int], real: int, captions: list[str] | None, conditioning: Conditioning | None
    ) -> Batch:
        read = self._pictures(rows)
        pixels = torch.stack([picture for picture, _ in read])
        return Batch(
            records=[self.store.records[row] for row in rows],
            size=torch.tensor([size for _, size in read], dtype=torch.float32),  # [B, 6]
            weight=(torch.arange(len(rows)) < real).float(),
            images=pixels.float().div_(127.5).sub_(1) if self.pictures == "images" else None,
            latents=pixels.float() if self.pictures == "latents" else None,
            captions=captions,
            conditioning=conditioning,
        )

    def _pictures(self, rows: list[int]) -> list[tuple[Tensor, tuple[int, ...]]]:
        """Return each row's uint8 pixels or stored latents, with its row of `Batch.size`."""
        known = self._kept_pictures if self.cache else {}
        new = [row for row in dict.fromkeys(rows) if row not in known]
        read = self._read_images if self.pictures == "images" else self._read_latents
        known |= zip(new, read(new), strict=True)
        return [known[row] for row in rows]

    def _read_images(self, rows: list[int]) -> list[tuple[Tensor, tuple[int, ...]]]:
        read = list[tuple[Tensor, tuple[int, ...]]]()
        for row, data in zip(rows, self.store.images(rows), strict=True):
            record = self.store.records[row]
            picture = decode(data, where=f"sample '{record.id}' in {self.store.path}")
            pixels, crop = fit(picture, self.resolution)
            read.append((torch.from_numpy(pixels), (*record.size, *crop, self.resolution, self.resolution)))
        return read

    def _read_latents(self, rows: list[int]) -> list[tuple[Tensor, tuple[int, ...]]]:
        latents = self.store.latents(rows).unbind() if rows else ()
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
        return self.store.conditioning([self.store.text_rows[row][key] for row, key in zip(rows, keys, strict=True)])

    def _require_stored(self) -> None:
        for wanted, column in (
            (self.pictures, {"images": "image"}.get(self.pictures, "latents")),
            (self.text, "texts"),
        ):
            if wanted != "captions" and column not in self.store.samples:
                there = {"image": "images", "latents": "latents", "texts": "conditioning"}
                has = ", ".join(name for column, name in there.items() if column in self.store.samples)
                raise DataError(f"{self.store.path} has no {wanted}; it has captions, {has}")


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
