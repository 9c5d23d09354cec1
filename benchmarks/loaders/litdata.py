"""litdata: chunks on the local disk, its own order: the chunks are shuffled, and all samples inside each.

Its own ways, measured: latents as tensors, each decoded alone, 25 us, as arrays 38-51; JPEGs as tensors of bytes 17,
as bytes 805 when all samples of a chunk are shuffled; chunks of 256 samples 24-43; its default, which decodes a window
of 256 samples together, up to 790.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.loaders.batch import Batch, Epochs, Row, Setting, batched
from benchmarks.loaders.source import Source, captions

litdata: Any = import_module("litdata")
packages: Sequence[str] = ("litdata",)


def write(setting: Setting, store: Path) -> None:
    """Write the samples in chunks of 64 MB."""
    litdata.optimize(
        fn=partial(_sample, setting),
        inputs=list(range(len(Source(setting.source)))),
        output_dir=str(store / "chunks"),
        chunk_bytes="64MB",
        num_workers=1,
    )


def _sample(setting: Setting, number: int) -> dict[str, Any]:
    source = Source(setting.source)
    original, synthetic = captions(number)
    content = source.latents[number] if setting.task == "latents" else np.frombuffer(source.content(number), np.uint8)
    return {"content": torch.tensor(content), "original": original, "synthetic": synthetic}


def epochs(store: Path, setting: Setting) -> Epochs:
    """Return the loader."""
    samples = Batches(str(store / "chunks"), shuffle=True, item_shuffle_window="full", batch_decode=0)
    samples.setting = setting
    loader = litdata.StreamingDataLoader(
        samples,
        batch_size=1,  # an item is a batch already
        collate_fn=_first,
        num_workers=setting.workers,
        persistent_workers=setting.workers > 0,
    )
    return lambda number: iter(loader)


class Batches(litdata.StreamingDataset):  # type: ignore[misc]  # the class is only known where it is installed
    """Its stream of samples, gathered into batches."""

    setting: Setting

    def __iter__(self) -> Iterator[Batch]:
        super().__iter__()
        return batched(self.setting.task, self._rows(), self.setting.size)

    def _rows(self) -> Iterator[Row]:
        while True:
            try:
                sample = super().__next__()
            except StopIteration:
                return
            yield Row(sample["content"].numpy(), sample["original"], sample["synthetic"])


def _first(batches: Sequence[Batch]) -> Batch:
    return batches[0]
