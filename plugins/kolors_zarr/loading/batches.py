"""From filled memory to the tensors of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kolors_kernel.values import Batch, Conditioning, SampleRecord
from kolors_zarr.loading.filling import Filled
from kolors_zarr.loading.ring import Slot
from kolors_zarr.store.layout import CAPTION
from kolors_zarr.store.numbering import Located
from kolors_zarr.store.reading import Store


@dataclass(frozen=True)
class ZarrBatch(Batch):
    """A batch, and the keys of the captions that its samples were given."""

    keys: Sequence[str] = ()


class LazyRecords(Sequence[SampleRecord]):
    """The records of some samples, read when the first of them is looked at, but for ids that are known."""

    def __init__(self, store: Store, numbers: NDArray[np.int64], ids: Sequence[str | None]) -> None:
        self._store, self._numbers, self._ids = store, numbers, ids

    def captions(self, key: str) -> list[str | None]:
        """Return that caption of every sample, None for one that lacks it, without making records."""
        return self._store.read_strings(CAPTION + key, self._where)

    @overload
    def __getitem__(self, place: int) -> SampleRecord: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[SampleRecord]: ...
    def __getitem__(self, place: int | slice) -> SampleRecord | Sequence[SampleRecord]:
        return self._records[place]

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[SampleRecord]:
        return iter(self._records)

    @cached_property
    def _where(self) -> Located:
        return self._store.locate(self._numbers)

    @cached_property
    def _records(self) -> list[SampleRecord]:
        return self._store.records(self._where, self._ids)


class PinnedSlot(Slot):
    """Memory that a GPU copies from without waiting.

    Torch gives pinned memory that was let go to the next who asks, but not before every copy from it is done: that is
    a ring of its own.
    """

    def __init__(self, size: int) -> None:
        self._tensor = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        super().__init__(self._tensor.numpy())

    def lend(self) -> Tensor:
        """Return the memory as a tensor."""
        return self._tensor


def to_batch(filled: Filled, slot: Slot, store: Store, *, pinned: bool) -> ZarrBatch:
    """Return the batch that was filled, as views of the slot's memory; with `pinned`, moved to where a GPU copies from.

    Pictures of the store are [B, H, W, 3] and come as a view [B, 3, H, W].
    """
    memory = slot.lend()
    if not isinstance(memory, Tensor):
        memory = torch.from_numpy(memory)
        memory = memory.pin_memory() if pinned else memory
    arrays = {name: torch.from_numpy(array) for name, array in filled.loose.items()}
    for name, (start, stop, dtype, shape) in filled.places.items():
        arrays[name] = memory[start:stop].view(getattr(torch, dtype)).view(shape)
    conditioning = None
    if "tokens" in arrays:
        conditioning = Conditioning(arrays["tokens"], arrays["pooled"], arrays.get("key_bias"))
    images = arrays.get("images")
    return ZarrBatch(
        records=LazyRecords(store, filled.numbers, filled.ids),
        size=arrays["size"],
        weight=arrays["weight"],
        images=None if images is None else images.permute(0, 3, 1, 2),
        latents=arrays.get("latents"),
        captions=filled.captions,
        conditioning=conditioning,
        keys=filled.keys,
    )
