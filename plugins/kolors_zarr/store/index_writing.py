"""The index of a store as a writer makes it: gathered from part rows, what is known of every sample and shard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kolors_zarr.store.layout import MOST_CAPTIONS, MOST_VALUES, OBJECT, TAG, is_key
from kolors_zarr.store.parts import Numbers, PartRow

Array = NDArray[Any]


class Index:
    """Takes in the part rows of a store in its order. Its memory is that of the columns, for up to `samples`."""

    def __init__(self, *, samples: int, shards: int) -> None:
        self.samples = self.shards = 0
        self._group, self._group_start = "", 0
        self._size, self._crop = np.zeros((samples, 2), np.uint16), np.zeros((samples, 4), np.uint16)
        self._captions, self._caption_keys = np.zeros(samples, np.uint16), dict[str, int]()
        self._counts = np.zeros(shards, np.uint32)
        self._objects: dict[str, NDArray[np.uint32]] = {}
        self._tags: dict[str, _Tag] = {}

    def add(self, row: PartRow) -> None:
        """Take in the next part. Raises ValueError when there are more caption keys than the index has bits.

        Shards of the group that were passed over have no samples.
        """
        if row.group != self._group:
            self._group, self._group_start = row.group, self.shards
        shard = self._group_start + row.shard
        here = slice(self.samples, self.samples + row.samples)
        self._size[here], self._crop[here] = row.size, row.crop
        places = [self._caption_keys.setdefault(key, len(self._caption_keys)) for key in row.caption_keys]
        if len(self._caption_keys) > MOST_CAPTIONS:
            raise ValueError(
                f"the samples have the captions {sorted(self._caption_keys)}; a store has room for {MOST_CAPTIONS}"
            )
        self._captions[here] = _moved(row.captions, places)
        for name, (values, codes) in row.tags.items():
            if is_key(name):
                self._tags.setdefault(name, _Tag(len(self._size))).add(here, values, codes)
        self._counts[shard] = row.samples
        for name, (size, checksum) in row.objects.items():
            table = self._objects.setdefault(name, np.zeros((len(self._counts), 3), np.uint32))
            table[shard] = size & 0xFFFFFFFF, size >> 32, checksum
        self.samples, self.shards = here.stop, shard + 1

    @property
    def caption_keys(self) -> tuple[str, ...]:
        """The caption keys in the order of their bits."""
        return tuple(sorted(self._caption_keys))

    def vocabularies(self) -> Mapping[str, tuple[str, ...]]:
        """Return the values of each tag that the index has, sorted."""
        return {name: tuple(sorted(tag.codes)) for name, tag in sorted(self._tags.items()) if tag.numbers is not None}

    def columns(self) -> Iterator[tuple[str, Array]]:
        """Yield the columns by name, of samples and then of shards; each is made when it is asked for."""
        yield "size", self._size[: self.samples]
        yield "crop", self._crop[: self.samples]
        bits = [self.caption_keys.index(key) for key in self._caption_keys]
        yield "captions", _moved(self._captions[: self.samples], bits)
        for name in self.vocabularies():
            yield TAG + name, self._tags[name].sorted()[: self.samples]
        yield "count", self._counts[: self.shards]
        for name, table in sorted(self._objects.items()):
            yield OBJECT + name, table[: self.shards]


class _Tag:
    """The values of one tag, numbered as they come; without numbers once there are too many of them."""

    def __init__(self, samples: int) -> None:
        self.numbers: Numbers | None = np.zeros(samples, np.uint16)
        self.codes: dict[str, int] = {}

    def add(self, here: slice, values: Sequence[str], codes: Numbers) -> None:
        if self.numbers is None:
            return
        own = [self.codes.setdefault(value, len(self.codes) + 1) for value in values]
        if len(self.codes) > MOST_VALUES:
            self.numbers = None
            self.codes.clear()
        else:
            self.numbers[here] = np.array([0, *own], np.uint16)[codes]

    def sorted(self) -> Numbers:
        assert self.numbers is not None
        ranks = {value: rank for rank, value in enumerate(sorted(self.codes), start=1)}
        return np.array([0, *(ranks[value] for value in self.codes)], np.uint16)[self.numbers]


def _moved(bits: Numbers, places: Sequence[int]) -> Numbers:
    """Return the bits with the i-th put in place `places[i]`."""
    moved = np.zeros_like(bits)
    for i, place in enumerate(places):
        moved |= ((bits >> i) & 1) << place
    return moved
