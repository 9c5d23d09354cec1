"""Hugging Face datasets: an Arrow table, mapped, whose rows are asked for by a batch of numbers.

Its own ways, measured: the format "arrow" with columns of fixed length 11 us a latent, of bytes 10-16, the format
"torch" 27, and with `Array3D` 87 (torch) or 230 (numpy).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.loaders import map_style
from benchmarks.loaders.batch import Batch, Epochs, Setting, pack
from benchmarks.loaders.source import Array, Source, captions

datasets: Any = import_module("datasets")
packages: Sequence[str] = ("datasets", "pyarrow")


def write(setting: Setting, store: Path) -> None:
    """Write the samples as a saved data set."""
    source = Source(setting.source)
    datasets.disable_progress_bars()
    text, length = datasets.Value("string"), int(np.prod(source.latents.shape[1:])) if setting.task == "latents" else 0
    content = datasets.List(datasets.Value("float16"), length=length) if length else datasets.Value("binary")
    features = datasets.Features({"content": content, "original": text, "synthetic": text})

    def rows() -> Iterator[dict[str, Any]]:
        for number in range(len(source)):
            original, synthetic = captions(number)
            data = source.latents[number].ravel() if length else source.content(number)
            yield {"content": data, "original": original, "synthetic": synthetic}

    with TemporaryDirectory(dir=store) as cache:
        datasets.Dataset.from_generator(rows, features=features, cache_dir=cache).save_to_disk(str(store / "saved"))


def epochs(store: Path, setting: Setting) -> Epochs:
    """Return the loader."""
    return map_style.epochs(partial(Table, store, setting), setting)


class Table:
    """A saved data set, mapped."""

    def __init__(self, store: Path, setting: Setting) -> None:
        self.setting = setting
        self.shape = Source(setting.source).sizes[0]
        self.rows: Any = datasets.load_from_disk(str(store / "saved")).with_format("arrow")

    def read(self, numbers: Array) -> Batch:
        """Return the samples of these numbers."""
        table = self.rows[numbers]
        original, synthetic = table["original"].to_pylist(), table["synthetic"].to_pylist()
        if self.setting.task == "latents":
            values = table["content"].combine_chunks().flatten().to_numpy().reshape(-1, 4, *self.shape)
            return Batch(torch.from_numpy(values), None, original, synthetic)
        return pack(self.setting.task, [jpeg.as_buffer() for jpeg in table["content"]], original, synthetic)
