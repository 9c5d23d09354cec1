"""Lance: rows taken by a batch of numbers, in workers that are started anew, since it must not be forked.

Its own ways, measured: binary columns of fixed length taken in sorted order 85-110 us a latent, unsorted 100-110;
lists of float16 110-175; binary of any length 100-200. Fewer threads than its defaults are slower.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.loaders import map_style
from benchmarks.loaders.batch import Batch, Epochs, Setting, pack
from benchmarks.loaders.source import Array, Source, captions

lance: Any = import_module("lance")
arrow: Any = import_module("pyarrow")
packages: Sequence[str] = ("pylance",)
ROWS = 128  # in a record batch while writing


def write(setting: Setting, store: Path) -> None:
    """Write the samples as a data set."""
    source = Source(setting.source)
    binary = arrow.binary(len(source.content(0))) if setting.task == "latents" else arrow.binary()
    schema = arrow.schema([("content", binary), ("original", arrow.string()), ("synthetic", arrow.string())])

    def tables() -> Iterator[Any]:
        for begin in range(0, len(source), ROWS):
            numbers = range(begin, min(begin + ROWS, len(source)))
            original, synthetic = zip(*map(captions, numbers), strict=True)
            columns = [[source.content(number) for number in numbers], original, synthetic]
            arrays = [arrow.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
            yield arrow.RecordBatch.from_arrays(arrays, schema=schema)

    lance.write_dataset(tables(), str(store / "samples.lance"), schema)


def epochs(store: Path, setting: Setting) -> Epochs:
    """Return the loader."""
    return map_style.epochs(partial(Opened, store, setting), setting, context="spawn")


class Opened:
    """An open data set."""

    def __init__(self, store: Path, setting: Setting) -> None:
        self.setting = setting
        self.shape = Source(setting.source).sizes[0]
        self.rows: Any = lance.dataset(str(store / "samples.lance"))

    def read(self, numbers: Array) -> Batch:
        """Return the samples of these numbers, in the order they are stored."""
        table = self.rows.take(np.sort(numbers).tolist())
        original, synthetic = table["original"].to_pylist(), table["synthetic"].to_pylist()
        if self.setting.task == "latents":
            values = np.frombuffer(table["content"].combine_chunks().buffers()[1], np.float16)
            return Batch(torch.from_numpy(values.reshape(-1, 4, *self.shape)), None, original, synthetic)
        return pack(self.setting.task, [jpeg.as_buffer() for jpeg in table["content"]], original, synthetic)
