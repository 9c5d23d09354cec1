"""Whether an epoch held every sample once, with its own content and captions."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping

import numpy as np

from benchmarks.loaders.batch import Batch, Task
from benchmarks.loaders.source import Array, Source, captions, thumbnail

CLOSE = 2.0  # grey levels between the means of two decoders' pictures


class Check:
    """Counts what one epoch delivers."""

    def __init__(self, source: Source, task: Task) -> None:
        self.task = task
        self.expected = source.thumbnails() if task == "decoded" else source.checksums()
        self.numbers: list[int] = []
        self.wrong = 0

    def take(self, batch: Batch) -> None:
        """Note which samples a batch holds, by their captions, and whether the contents are theirs."""
        for place, content in enumerate(self._contents(batch)):
            texts = [each[place] for each in (batch.original, batch.synthetic) if each]
            number = int(texts[0][:6])
            self.numbers.append(number)
            both = captions(number)
            right = tuple(texts) == both if batch.synthetic else texts[0] in both
            self.wrong += not (right and self._is_content(content, number))

    def figures(self) -> Mapping[str, int]:
        """Return how many samples were missing, how many deliveries were one too many, and how many were wrong."""
        seen = np.bincount(self.numbers, minlength=len(self.expected))
        return {
            "missing": int((seen == 0).sum()),
            "doubled": int(np.maximum(seen - 1, 0).sum()),
            "wrong": self.wrong,
        }

    def _contents(self, batch: Batch) -> Iterator[Array]:
        content = batch.content.numpy()
        if batch.offsets is None:
            return iter(content)
        return iter(np.split(content, batch.offsets[1:-1].numpy()))

    def _is_content(self, content: Array, number: int) -> bool:
        if self.task == "decoded":
            return bool(np.abs(thumbnail(content) - self.expected[number]).max() < CLOSE)
        return zlib.crc32(content.tobytes()) == int(self.expected[number])
