"""The limit: a copy out of a mapped file and nothing else. `ring` copies into buffers that are used again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.loaders import map_style
from benchmarks.loaders.batch import Batch, Epochs, Setting, pack
from benchmarks.loaders.source import Array, Source, mapped

packages: Sequence[str] = ("numpy",)
RING = 4  # batches in use at once, at most


def write(setting: Setting, store: Path) -> None:
    """Link the source's own files: they are the store."""
    for name in ("contents.bin", "offsets.npy", "captions.bin", "caption_offsets.npy", "sizes.npy"):
        os.link(setting.source / name, store / name)


def epochs(store: Path, setting: Setting) -> Epochs:
    """Return the loader."""
    return map_style.epochs(partial(Mapped, store, setting), setting)


class Mapped:
    """The mapped files."""

    def __init__(self, store: Path, setting: Setting) -> None:
        self.task = setting.task
        self.source = Source(store)
        self.texts = mapped(store / "captions.bin")
        self.text_offsets = np.load(store / "caption_offsets.npy")
        shape = (setting.size, *self.source.latents.shape[1:]) if self.task == "latents" else (0,)
        self.ring = [torch.empty(shape, dtype=torch.float16) for _ in range(RING if setting.option == "ring" else 0)]

    def read(self, numbers: Array) -> Batch:
        """Return copies of the samples."""
        original, synthetic = self.text(2 * numbers), self.text(2 * numbers + 1)
        if self.task == "latents":
            return Batch(self.copies(numbers), None, original, synthetic)
        contents, offsets = self.source.contents, self.source.offsets
        jpegs = [contents[begin:end] for begin, end in zip(offsets[numbers], offsets[numbers + 1], strict=True)]
        return pack(self.task, jpegs, original, synthetic)

    def copies(self, numbers: Array) -> torch.Tensor:
        """[n, 4, h, w] float16: the latents, in fresh memory or in the next buffer of the ring."""
        if not self.ring:
            return torch.from_numpy(self.source.latents[numbers])
        self.ring.append(buffer := self.ring.pop(0))
        latents = buffer[: len(numbers)]
        np.take(self.source.latents, numbers, axis=0, out=latents.numpy(), mode="clip")
        return latents

    def text(self, places: Array) -> list[str]:
        """Return the captions at these places."""
        begins, ends = self.text_offsets[places], self.text_offsets[places + 1]
        return [self.texts[begin:end].tobytes().decode() for begin, end in zip(begins, ends, strict=True)]
