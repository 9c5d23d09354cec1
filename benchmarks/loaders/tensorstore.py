"""TensorStore on a zarr store as ours is laid out; `raw` is the same without crc32c.

Its own ways, measured: one read of all numbers of a batch with single threads and a cache for the shard indices alone
48-51 us a latent, one read a number 66-104. JPEGs are rows padded to the longest, since it cannot open arrays of
variable length: 37-43 us, where reading ranges out of one flat array takes 70.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from zarr.codecs import Crc32cCodec

from benchmarks.loaders import map_style
from benchmarks.loaders.batch import Batch, Epochs, Setting, pack
from benchmarks.loaders.source import Array, Source
from benchmarks.loaders.zarr_python import read_captions, write_array, write_captions

tensorstore: Any = import_module("tensorstore")
packages: Sequence[str] = ("tensorstore",)
CONTEXT = {
    "data_copy_concurrency": {"limit": 1},
    "file_io_concurrency": {"limit": 1},
    "cache_pool": {"total_bytes_limit": 1_000_000},
}


def write(setting: Setting, store: Path) -> None:
    """Write latents or padded JPEGs, and the captions."""
    source = Source(setting.source)
    rows = source.latents if setting.task == "latents" else padded(source)
    write_array(store / "content", rows, compressors=None if setting.option == "raw" else [Crc32cCodec()])
    np.save(store / "lengths.npy", np.diff(source.offsets))
    write_captions(source, store)


def padded(source: Source) -> Array:
    """[N, length of the longest] uint8: the JPEGs with zeros behind them."""
    lengths = np.diff(source.offsets)
    rows = np.zeros((len(source), lengths.max()), np.uint8)
    for number, length in enumerate(lengths):
        rows[number, :length] = np.frombuffer(source.content(number), np.uint8)
    return rows


def epochs(store: Path, setting: Setting) -> Epochs:
    """Return the loader."""
    return map_style.epochs(partial(Opened, store, setting), setting)


class Opened:
    """An open store."""

    def __init__(self, store: Path, setting: Setting) -> None:
        self.task = setting.task
        self.captions = read_captions(store)
        self.lengths = np.load(store / "lengths.npy")
        place = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{store / 'content'}/"}, "context": CONTEXT}
        self.content: Any = tensorstore.open(place, open=True, read=True).result()

    def read(self, numbers: Array) -> Batch:
        """Return the samples of these numbers."""
        original, synthetic = map(list, zip(*(self.captions[number] for number in numbers), strict=True))
        rows = self.content[numbers].read().result()
        if self.task == "latents":
            return Batch(torch.from_numpy(rows), None, original, synthetic)
        jpegs = [row[:length] for row, length in zip(rows, self.lengths[numbers], strict=True)]
        return pack(self.task, jpegs, original, synthetic)
