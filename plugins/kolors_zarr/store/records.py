"""Captions and tags of records, read from the store when they are first looked at."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, cast

from kolors_zarr.store.damage import DamagedSamples


class LazyTexts:
    """A column of texts for some samples, read when the first of them is looked at.

    `read` returns a text for each, None where there is none, and what to raise where it cannot be read.
    """

    def __init__(self, read: Callable[[], Sequence[str | DamagedSamples | None]]) -> None:
        self._read = read
        self._texts: Sequence[str | DamagedSamples | None] | None = None

    def __getitem__(self, place: int) -> str:
        if self._texts is None:  # two threads at once read twice, and the same
            self._texts = self._read()
        text = self._texts[place]
        if isinstance(text, DamagedSamples):
            raise text
        return text or ""


class _LazyMapping(Mapping[str, str]):
    """A mapping of texts that compares, prints and is pickled as the dict it stands for."""

    def __repr__(self) -> str:
        return repr(dict(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


class LazyCaptions(_LazyMapping):
    """A sample's captions; which there are is known without reading one.

    `texts` has those of all samples, and `there` are the keys of this one's, none of which is empty: what a caption
    mix chooses from.
    """

    def __init__(self, texts: Mapping[str, LazyTexts], there: Collection[str], place: int) -> None:
        self._texts, self.there, self._place = texts, there, place

    def __getitem__(self, key: str) -> str:
        if key not in self.there:
            raise KeyError(key)
        return self._texts[key][self._place]

    def __contains__(self, key: object) -> bool:
        return key in self.there

    def __iter__(self) -> Iterator[str]:
        return iter(self.there)

    def __len__(self) -> int:
        return len(self.there)


class LazyTags(_LazyMapping):
    """A sample's tags."""

    def __init__(self, texts: LazyTexts, place: int) -> None:
        self._texts, self._place = texts, place
        self._tags: dict[str, str] | None = None

    def __getitem__(self, key: str) -> str:
        return self._read()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def _read(self) -> dict[str, str]:
        if self._tags is None:
            self._tags = json.loads(self._texts[self._place])
        return cast(dict[str, str], self._tags)
