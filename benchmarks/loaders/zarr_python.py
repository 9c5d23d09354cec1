"""zarr-python on a store as ours is laid out: shards of 256 samples, inner chunks of one, bytes and crc32c.

Its own ways, measured: a batch gathered by the asynchronous interface 490-540 us a latent, one call after another
610, threads 580, `oindex` 2,560. Strings are read whole when the store is opened: one alone costs more than a latent.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Awaitable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.api import asynchronous
from zarr.codecs import Crc32cCodec

from benchmarks.loaders import map_style
from benchmarks.loaders.batch import Batch, Epochs, Setting, pack
from benchmarks.loaders.source import Array, Source, captions

packages: Sequence[str] = ("zarr",)
SHARD = 256


def write(setting: Setting, store: Path) -> None:
    """Write latents or JPEGs, and the captions."""
    source = Source(setting.source)
    if setting.task == "latents":
        write_array(store / "content", source.latents, compressors=[Crc32cCodec()])
    else:
        jpegs = np.empty(len(source), object)
        jpegs[:] = [source.content(number) for number in range(len(source))]
        write_array(store / "content", jpegs, dtype="variable_length_bytes", compressors=[Crc32cCodec()])
    write_captions(source, store)


def write_captions(source: Source, store: Path) -> None:
    """Write both captions of each sample as strings of variable length, [N, 2], in chunks of whole shards."""
    texts = np.array([captions(number) for number in range(len(source))], dtype=object)
    zarr.create_array(store / "captions", shape=texts.shape, dtype="str", chunks=(SHARD, 2))[:] = texts


def write_array(path: Path, rows: Array, *, dtype: Any = None, compressors: Any) -> None:
    """Write an array in shards, one chunk a row."""
    rest = rows.shape[1:]
    with warnings.catch_warnings(action="ignore"):  # bytes of variable length are no part of the specification yet
        array = zarr.create_array(
            path,
            shape=rows.shape,
            dtype=dtype or rows.dtype,
            chunks=(1, *rest),
            shards=(SHARD, *rest),
            compressors=compressors,
        )
        for begin in range(0, len(rows), SHARD):
            array[begin : begin + SHARD] = rows[begin : begin + SHARD]


def read_captions(store: Path) -> list[list[str]]:
    """Return the two captions of all samples."""
    array: Any = zarr.open_array(store / "captions", mode="r")
    texts: list[list[str]] = array[:].tolist()
    return texts


def epochs(store: Path, setting: Setting) -> Epochs:
    """Return the loader."""
    return map_style.epochs(partial(Gathered, store, setting), setting)


class Gathered:
    """An open store, with an event loop of its own."""

    def __init__(self, store: Path, setting: Setting) -> None:
        zarr.config.set({"threading.max_workers": 1})  # more are slower
        self.task = setting.task
        self.captions = read_captions(store)
        self.loop = asyncio.new_event_loop()
        with warnings.catch_warnings(action="ignore"):
            self.content: Any = self.loop.run_until_complete(asynchronous.open_array(store=store / "content", mode="r"))

    def read(self, numbers: Array) -> Batch:
        """Return the samples of these numbers."""
        original, synthetic = map(list, zip(*(self.captions[number] for number in numbers), strict=True))
        contents = self.loop.run_until_complete(
            _all([self.content.getitem((slice(number, number + 1),)) for number in numbers.tolist()])
        )
        return pack(self.task, [row[0] for row in contents], original, synthetic)


async def _all(reads: Sequence[Awaitable[Any]]) -> list[Any]:
    return await asyncio.gather(*reads)
