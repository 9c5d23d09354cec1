"""The slots that ChatGLM3 reads, and what of them is the same and can be read once (2.1.1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Slots:
    """Texts one behind the other, R slots in all; the n-th text has `lengths[n]` of them.

    ids, positions [R]; real [R], false on padding; count [R] float64, how many equal slots each one stands for.
    """

    ids: Tensor
    positions: Tensor
    real: Tensor
    count: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, texts: Sequence[Sequence[int]], *, pad: int, least: int) -> Slots:
        """Lay texts of token ids into at least so many slots each, with padding on the left at position 0."""
        lengths = tuple(max(least, len(ids)) for ids in texts)
        pads = [length - len(ids) for length, ids in zip(lengths, texts, strict=True)]
        slot = [torch.arange(-empty, len(ids)) for empty, ids in zip(pads, texts, strict=True)]
        place = torch.cat(slot) if slot else torch.arange(0)
        ids = [token for empty, text in zip(pads, texts, strict=True) for token in (*[pad] * empty, *text)]
        count = torch.ones(len(ids), dtype=torch.float64)
        return cls(torch.tensor(ids, dtype=torch.long), place.clamp(min=0), place >= 0, count, lengths)

    def split(self, most: int) -> Iterator[Slots]:
        """Yield the slots in runs of neighbouring texts, of at most so many slots where a run is not one text."""
        first, start = 0, 0
        for last, stop in runs(self.lengths, most):
            rows = slice(start, stop)
            parts = (self.ids[rows], self.positions[rows], self.real[rows], self.count[rows])
            yield Slots(*parts, self.lengths[first:last])
            first, start = last, stop

    def to(self, device: torch.device) -> Slots:
        """Return the slots on a device."""
        ids, positions, real, count = (each.to(device) for each in (self.ids, self.positions, self.real, self.count))
        return Slots(ids, positions, real, count, self.lengths)

    def ends(self) -> Tensor:
        """Return the slot behind each text, [texts]."""
        return torch.tensor(self.lengths, dtype=torch.long).cumsum(0)


def runs(lengths: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Yield where each run of neighbouring texts ends, in texts and in slots: see `Slots.split`."""
    start = stop = 0
    for text, length in enumerate(lengths):
        if stop > start and stop + length - start > most:
            yield text, stop
            start = stop
        stop += length
    if stop > start:
        yield len(lengths), stop


def reason_not_to_merge(slots: Slots) -> str | None:
    """Say why the padding of a text is not one slot many times over, or return None."""
    pads = ~slots.real
    ids = slots.ids[pads]
    if not len(ids):
        return None
    if (ids != ids[0]).any():
        return f"padding has several ids, as {ids[0]} and {ids[ids != ids[0]][0]}"
    if slots.positions[pads].any():
        return f"padding has positions other than 0, as {slots.positions[pads].max()}"
    falls = slots.real[:-1] & pads[1:]
    falls[slots.ends()[:-1] - 1] = False  # where the next text begins
    if falls.any():
        return f"padding is not on the left of its text: there is some at slot {int(falls.nonzero()[0]) + 1}"
    return None


def merge_padding(slots: Slots) -> Slots:
    """Return the slots with one slot of padding per text, which counts for all of it.

    Equal slots stay equal through every layer: they ask the same of the same keys. A softmax over equal keys is one
    over a single key whose score is raised by the log of their number. Only where `reason_not_to_merge` has none.
    """
    ends = slots.ends()
    lengths = torch.tensor(slots.lengths, dtype=torch.long)
    real = slots.real.cumsum(0)[ends - 1].diff(prepend=ends.new_zeros(1))
    pads, starts = lengths - real, ends - lengths
    count, kept = slots.count.clone(), slots.real.clone()
    count[starts] = pads.clamp(min=1).to(count.dtype)
    kept[starts] = True
    parts = (slots.ids[kept], slots.positions[kept], slots.real[kept], count[kept])
    return Slots(*parts, tuple((real + (pads > 0)).tolist()))
