"""What a loader is asked for and what it hands over, and how rows become a batch where a library does not do it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

Task: TypeAlias = Literal["latents", "bytes", "decoded"]


@dataclass(frozen=True)
class Setting:
    """What is measured: latents, JPEGs as bytes or decoded; from which source; by how many workers.

    `option` chooses between the variants that a module measures; `size` is the batch.
    """

    task: Task
    source: Path
    workers: int
    option: str
    size: int = 32


class Batch(NamedTuple):
    """What every loader delivers: contiguous tensors and the two captions of each sample, or one chosen of them.

    content: latents [B, 4, h, w] float16; or JPEGs end to end, uint8, with `offsets` [B + 1]; or pictures of one
    size [B, h, w, 3] uint8.
    """

    content: Tensor
    offsets: Tensor | None
    original: list[str]
    synthetic: list[str]


Epochs: TypeAlias = Callable[[int], Iterator[Batch]]
"""What a module's `epochs` returns: the batches of each epoch, in an order of its own."""


class Row(NamedTuple):
    """One sample on its way into a batch: a latent [4, h, w] or the bytes of a JPEG, and its captions."""

    content: Any
    original: str
    synthetic: str


def pack(task: Task, contents: Sequence[Any], original: list[str], synthetic: list[str]) -> Batch:
    """Return a batch of latents [4, h, w], or of encoded JPEGs in anything that has a buffer."""
    if task == "latents":
        return Batch(torch.from_numpy(np.stack(contents)), None, original, synthetic)
    if task == "decoded":
        return Batch(decoded(contents), None, original, synthetic)
    parts = [np.frombuffer(content, np.uint8) for content in contents]
    offsets = torch.from_numpy(np.cumsum([0, *map(len, parts)]))
    return Batch(torch.from_numpy(np.concatenate(parts)), offsets, original, synthetic)


def pack_rows(task: Task, rows: Sequence[Row]) -> Batch:
    """Return a batch of rows as a library that delivers samples one by one gives them."""
    contents, original, synthetic = zip(*rows, strict=True)
    return pack(task, contents, list(original), list(synthetic))


def decoded(jpegs: Sequence[Any]) -> Tensor:
    """Decode JPEGs of one size straight into their rows of a batch [B, h, w, 3] uint8; the decoder is everyone's."""
    simplejpeg: Any = import_module("simplejpeg")
    pictures = torch.empty(len(jpegs), *jpeg_size(jpegs[0]), 3, dtype=torch.uint8)
    for jpeg, row in zip(jpegs, pictures.numpy(), strict=True):
        simplejpeg.decode_jpeg(np.frombuffer(jpeg, np.uint8), buffer=row)
    return pictures


def batched(task: Task, rows: Iterable[Row], size: int) -> Iterator[Batch]:
    """Gather rows in the order they come into batches, for "decoded" of one picture size each; the last are short.

    What a library without buckets needs beside it: the same simple grouping for all of them.
    """
    waiting: dict[tuple[int, int], list[Row]] = {}
    for row in rows:
        shape = jpeg_size(row.content) if task == "decoded" else (0, 0)
        rows_of_shape = waiting.setdefault(shape, [])
        rows_of_shape.append(row)
        if len(rows_of_shape) == size:
            yield pack_rows(task, waiting.pop(shape))
    for rows_of_shape in waiting.values():
        yield pack_rows(task, rows_of_shape)


def jpeg_size(jpeg: Any) -> tuple[int, int]:
    """Return the height and width that a JPEG's header gives."""
    simplejpeg: Any = import_module("simplejpeg")
    height, width, _, _ = simplejpeg.decode_jpeg_header(np.frombuffer(jpeg, np.uint8))
    return height, width
