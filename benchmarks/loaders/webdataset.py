"""webdataset: tar files read from end to end through a shuffle buffer of the whole set, since less is no true shuffle.

With two workers each shuffles the tar files that fall to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.loaders.batch import Batch, Epochs, Row, Setting, batched
from benchmarks.loaders.map_style import as_it_is
from benchmarks.loaders.source import Source, captions

webdataset: Any = import_module("webdataset")
packages: Sequence[str] = ("webdataset",)
SHARD = 256


def write(setting: Setting, store: Path) -> None:
    """Write tar files of raw latents or JPEGs, with both captions in a JSON file beside each."""
    source = Source(setting.source)
    with webdataset.ShardWriter(f"{store}/%04d.tar", maxcount=SHARD, verbose=0) as tar:
        for number in range(len(source)):
            texts = dict(zip(("original", "synthetic"), captions(number), strict=True))
            tar.write({"__key__": f"{number:06d}", "content": source.content(number), "json": texts})


def epochs(store: Path, setting: Setting) -> Epochs:
    """Return the loader."""
    source = Source(setting.source)
    files = sorted(map(str, store.glob("*.tar")))
    row = partial(_row, shape=(4, *source.sizes[0]) if setting.task == "latents" else ())
    pipeline = (
        webdataset.WebDataset(files, shardshuffle=len(files), empty_check=False)
        .shuffle(len(source), initial=len(source))
        .decode()
        .map(row)
        .compose(partial(_batches, setting=setting))
    )
    loader = webdataset.WebLoader(
        pipeline,
        batch_size=None,
        collate_fn=as_it_is,
        num_workers=setting.workers,
        persistent_workers=setting.workers > 0,
    )
    return lambda number: iter(loader)


def _row(sample: dict[str, Any], *, shape: tuple[int, ...]) -> Row:
    content = np.frombuffer(sample["content"], np.float16).reshape(shape) if shape else sample["content"]
    return Row(content, sample["json"]["original"], sample["json"]["synthetic"])


def _batches(rows: Iterable[Row], *, setting: Setting) -> Iterator[Batch]:
    return batched(setting.task, rows, setting.size)
