"""mosaicml-streaming: MDS files on the local disk, its own order (`naive`: one permutation of everything).

torchvision, which it imports and which nothing here calls, is replaced by an empty module in this process.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from torch.utils.data import IterableDataset

from benchmarks.loaders.batch import Batch, Epochs, Row, Setting, batched
from benchmarks.loaders.map_style import dataloader
from benchmarks.loaders.source import Source, captions

packages: Sequence[str] = ("mosaicml-streaming",)


class Anything(ModuleType):
    """A module whose every name is a class that nobody uses."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def _streaming() -> Any:
    for name in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional"):
        sys.modules[name] = Anything(name)
        sys.modules[name].__spec__ = ModuleSpec(name, None)
    return import_module("streaming")


streaming = _streaming()


def write(setting: Setting, store: Path) -> None:
    """Write the samples as MDS files of the default size."""
    source = Source(setting.source)
    shape = ",".join(map(str, source.latents.shape[1:])) if setting.task == "latents" else ""
    columns = {"content": f"ndarray:float16:{shape}" if shape else "bytes", "original": "str", "synthetic": "str"}
    with streaming.MDSWriter(out=str(store / "mds"), columns=columns) as files:
        for number in range(len(source)):
            original, synthetic = captions(number)
            content = source.latents[number] if shape else source.content(number)
            files.write({"content": content, "original": original, "synthetic": synthetic})


def epochs(store: Path, setting: Setting) -> Epochs:
    """Return the loader."""
    streaming.base.util.clean_stale_shared_memory()
    loader = dataloader(Stream(store, setting), setting)
    return lambda number: iter(loader)


class Stream(IterableDataset[Batch]):
    """Its stream of samples, gathered into batches."""

    def __init__(self, store: Path, setting: Setting) -> None:
        self.setting = setting
        self.samples: Any = streaming.StreamingDataset(
            local=str(store / "mds"), shuffle=True, shuffle_algo="naive", batch_size=setting.size
        )

    def __iter__(self) -> Iterator[Batch]:
        rows = (Row(sample["content"], sample["original"], sample["synthetic"]) for sample in self.samples)
        return batched(self.setting.task, rows, self.setting.size)
