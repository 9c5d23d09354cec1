"""Reading a store: any samples, in any order, each byte checked before it is used."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from functools import cache, partial
from itertools import chain
from threading import Lock
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from kolors_kernel.errors import DataError
from kolors_kernel.values import NO_CAPTION, SampleRecord
from kolors_zarr.store.checksums import Bytes
from kolors_zarr.store.column_form import reason_to_fall_back
from kolors_zarr.store.column_readers import ChunkReader, ColumnReader
from kolors_zarr.store.damage import Damage, DamagedSamples
from kolors_zarr.store.index_reading import IndexColumns
from kolors_zarr.store.layout import CAPTION, TEXT, column_key
from kolors_zarr.store.manifest import Column, Manifest
from kolors_zarr.store.numbering import Asked, Located, Numbering, Numbers
from kolors_zarr.store.opening import read_manifest
from kolors_zarr.store.places import Folder, Place
from kolors_zarr.store.records import LazyCaptions, LazyTags, LazyTexts
from kolors_zarr.store.requests import Requests
from kolors_zarr.store.shard_files import ShardFiles
from kolors_zarr.store.shard_ranges import ShardRanges
from kolors_zarr.store.shards import Shards, ShardTable

logger = logging.getLogger(__name__)
_AT_ONCE = 16
"""Requests on their way to a place that is not a folder, for each thread that reads."""
_RECORDS = 256
"""How many records share the reading of a caption."""
_NOTHING = Column(kind="array", dtype="void")


class Store:
    """An open store, by sample numbers: groups in the manifest's order, in them shards, in these rows.

    Opening reads the manifest and how many samples each shard has. Safe for several threads; a process that is handed
    one opens it anew, at the same edition. Raises DataError when there is no published store at the place, or not one
    of this version; where a sample's data is missing or damaged, reading it raises DamagedSamples.
    """

    def __init__(self, place: Place) -> None:
        self.__setstate__((place, read_manifest(place)))

    def __getstate__(self) -> tuple[Place, Manifest]:
        return self.place, self.manifest

    def __setstate__(self, state: tuple[Place, Manifest]) -> None:
        self.place, self.manifest = state
        at_once = 1 if isinstance(self.place, Folder) else _AT_ONCE
        self._index = IndexColumns(self.place, self.manifest, Requests(at_once))
        counts = self._index["count"].whole()
        self._numbering = Numbering(self.manifest, counts, where=self.place.url)
        table = ShardTable(self._numbering, self._index, shard_rows=self.manifest.shard_rows)
        self._shards: Shards
        if isinstance(self.place, Folder):
            self._shards = ShardFiles(self.place, table)
        else:  # with threads of its own, for they wait for those of the index
            self._shards = ShardRanges(self.place, table, Requests(at_once))
        self._readers: dict[tuple[str, int], ColumnReader] = {}
        self._plain: dict[str, ChunkReader] = {}
        self._keys = cache(partial(_keys, self.manifest.captions))
        self._opening = Lock()

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return self.manifest.samples

    @property
    def holds(self) -> frozenset[str]:
        """What the store can fill of a batch: images, latents, captions, conditioning."""
        columns = self.manifest.groups[0].columns if self.manifest.groups else {}
        ports = {
            "images": "image" in columns or "pixels" in columns,
            "latents": "latents" in columns,
            "captions": bool(self.manifest.captions),
            "conditioning": self.manifest.text is not None,
        }
        return frozenset(port for port, held in ports.items() if held)

    @property
    def starts(self) -> Numbers:
        """The number of each group's first sample, and last how many samples there are, [groups + 1]."""
        return self._numbering.starts

    @property
    def most_index_bytes(self) -> int:
        """The memory that knowing where everything is may come to take, however much is read."""
        return self._numbering.most_bytes + self._index.most_bytes + self._shards.most_bytes

    def column(self, name: str) -> NDArray[Any]:
        """Return a column of the index for all samples or shards, read anew. ValueError: there is no such column."""
        return self._index[name].whole()

    def rows(self, name: str, numbers: Asked) -> NDArray[Any]:
        """Return a column of the index for some samples; only the pieces of it that they are in are read."""
        return self._index[name].rows(self.locate(numbers).numbers)

    def locate(self, numbers: Asked) -> Located:
        """Return samples to be asked for in their stead: where they are is then not found out for each column."""
        return self._numbering.locate(numbers)

    def captions(self, numbers: Asked) -> list[Collection[str]]:
        """Return the keys of the captions that some samples have, by the index alone."""
        return [self._keys(bits) for bits in self.rows("captions", numbers).tolist()]

    def read_into(self, column: str, numbers: Asked, out: NDArray[Any]) -> None:
        """Copy arrays of some samples into `out` [numbers, ...], contiguous and of their dtype.

        Raises DamagedSamples once all others are copied; the rows of the damaged ones stay as they were. Raises
        ValueError when `out` does not fit.
        """
        asked = self.locate(numbers)
        self._require_fit(column, asked, out)
        # Cutting up an array costs as much as copying 10 kB, and a view of its memory a fifth of that.
        memory, faults = out.reshape(-1).view(np.uint8).data, dict[int, str]()
        size = len(memory) // max(1, len(asked))
        for position, value in self._values(column, asked, faults):
            memory[position * size : (position + 1) * size] = value
        self._raise_for(column, asked, faults)

    def read_bytes(self, column: str, numbers: Asked) -> list[bytes]:
        """Return encoded pictures or conditioning of some samples. Raises DamagedSamples.

        Raises ValueError where a sample never had it: conditioning of a caption that it lacks.
        """
        return [view.tobytes() for view in self.read_views(column, numbers)]

    def read_views(self, column: str, numbers: Asked) -> list[memoryview]:
        """Return what `read_bytes` does without a copy: in a folder, the pages of the files.

        For what is used at once, as a picture to decode; a view keeps its file mapped, or the request it came in.
        """
        asked = self.locate(numbers)
        found: list[memoryview | None] = [None] * len(asked)
        faults: dict[int, str] = {}
        for position, value in self._values(column, asked, faults):
            found[position] = memoryview(value)
        self._raise_for(column, asked, faults)
        if None in found:
            raise ValueError(f"sample number {asked.numbers[found.index(None)]} has no {column}")
        return cast(list[memoryview], found)

    def read_strings(self, column: str, numbers: Asked) -> list[str | None]:
        """Return texts of some samples, None for a caption that a sample lacks. Raises DamagedSamples."""
        asked = self.locate(numbers)
        faults: dict[int, str] = {}
        texts = self._texts(column, asked, faults)
        self._raise_for(column, asked, faults)
        return texts

    def damages(self, column: str, numbers: Asked) -> list[Damage]:
        """Return what is wrong with a column in some samples, all of which are read and checked."""
        asked, faults = self.locate(numbers), dict[int, str]()
        for _ in self._values(column, asked, faults):
            pass
        return self._damages(column, asked, faults)

    def records(self, numbers: Asked, ids: Sequence[str | None] = ()) -> list[SampleRecord]:
        """Return the records of some samples; captions and tags are read when first looked at. Raises DamagedSamples.

        Looking at one caption reads it for a few hundred neighbours in `numbers`, too. `ids` are not read again where
        they are known.
        """
        asked = self.locate(numbers)
        ids = ids or self.read_strings("id", asked)
        if len(asked) <= _RECORDS:
            return self._records(asked, ids)
        parts = (slice(start, start + _RECORDS) for start in range(0, len(asked), _RECORDS))
        return [each for part in parts for each in self._records(self.locate(asked.numbers[part]), ids[part])]

    def _records(self, asked: Located, ids: Sequence[str | None]) -> list[SampleRecord]:
        tags = LazyTexts(partial(self._lazy, "tags", asked))
        texts = {key: LazyTexts(partial(self._lazy, CAPTION + key, asked)) for key in self.manifest.captions}
        rows = zip(ids, self.rows("size", asked).tolist(), self.captions(asked), strict=True)
        return [
            SampleRecord(str(id), tuple(size), LazyCaptions(texts, keys, place), LazyTags(tags, place))
            for place, (id, size, keys) in enumerate(rows)
        ]

    def _texts(self, column: str, asked: Located, faults: dict[int, str]) -> list[str | None]:
        texts: list[str | None] = [None] * len(asked)
        for position, value in self._values(column, asked, faults):
            texts[position] = str(value, "utf-8")
        return texts

    def _lazy(self, column: str, asked: Located) -> list[str | DamagedSamples | None]:
        """Return texts, with what to raise in place of those that cannot be read."""
        faults: dict[int, str] = {}
        texts = self._texts(column, asked, faults)
        errors = {each.number: DamagedSamples(self.place.url, [each]) for each in self._damages(column, asked, faults)}
        return [errors.get(number, text) for number, text in zip(asked.numbers.tolist(), texts, strict=True)]

    def _values(self, column: str, asked: Located, faults: dict[int, str]) -> Iterator[tuple[int, Bytes]]:
        """Return position and bytes of each value that is there and right, and put the others into `faults`."""
        readers = [self._reader(column, group) for group in asked.by_group]
        if len({*readers}) == 1:
            return iter(readers[0].values(asked.wanted, faults))
        parts = zip(readers, asked.by_group.values(), strict=True)
        return chain.from_iterable(reader.values(wanted, faults) for reader, wanted in parts)

    def _reader(self, column: str, group: int) -> ColumnReader:
        reader = self._readers.get((column, group))
        if reader is None:
            with self._opening:
                reader = self._readers[column, group] = self._readers.get((column, group)) or self._open(column, group)
        return reader

    def _open(self, column: str, number: int) -> ColumnReader:
        group, rows = self.manifest.groups[number], self.manifest.shard_rows
        if column not in group.columns:
            raise ValueError(f"{self.place.url} has no column '{column}'; it has {', '.join(group.columns)}")
        key = column_key(group.name, column)
        why = reason_to_fall_back(self.place, key, group, column=column, shard_rows=rows)
        if why is None:
            # Texts and bytes are read alike in all groups.
            reader = ChunkReader(self._shards, column, group.columns[column])
            return reader if group.columns[column].kind == "array" else self._plain.setdefault(column, reader)
        from kolors_zarr.store.fallback import ZarrReader  # zarr takes half a second to import

        logger.warning("%s/%s is read through zarr-python, which is slow: %s", self.place.url, key, why)
        return ZarrReader(self.place, key, first_shard=self._numbering.first_shard(number), shard_rows=rows)

    def _require_fit(self, column: str, asked: Located, out: NDArray[Any]) -> None:
        for number in asked.by_group:
            group = self.manifest.groups[number]
            held = group.columns.get(column, _NOTHING)
            shape = (len(asked), *held.shape)
            if out.shape != shape or out.dtype != held.dtype or not out.flags.c_contiguous:
                raise ValueError(
                    f"{column} of {group.name} is read into a contiguous array of {held.dtype} {list(shape)}; this "
                    f"one is of {out.dtype} {list(out.shape)} with strides {out.strides}"
                )

    def _raise_for(self, column: str, asked: Located, faults: dict[int, str]) -> None:
        damages = self._damages(column, asked, faults)
        if damages:
            raise DamagedSamples(self.place.url, damages)

    def _damages(self, column: str, asked: Located, faults: dict[int, str]) -> list[Damage]:
        """Return faults with the names of their samples, without those of captions that a sample does not have."""
        if not faults:
            return []
        positions = np.array(sorted(faults))
        positions = positions[self._has(column, asked.numbers[positions])]
        lost = self.locate(asked.numbers[positions])
        ids: list[str | None] = [None] * len(lost)
        with suppress(DataError):  # the name is a kindness; where it is lost too the number must do
            ids = self._texts("id", lost, {})
        found = []
        for place, shard, row in lost.wanted:
            key, why = self._numbering.shard_key(column, shard), faults[int(positions[place])]
            found.append(Damage(int(lost.numbers[place]), ids[place], key, row, why))
        return found

    def _has(self, column: str, numbers: Numbers) -> NDArray[np.bool_]:
        """Return which samples must have a column: those that have the caption it is of, or all."""
        key = column.removeprefix(CAPTION).removeprefix(TEXT)
        if key in (column, NO_CAPTION):
            return np.ones(len(numbers), np.bool_)
        bit = np.uint16(1 << self.manifest.captions.index(key))
        has: NDArray[np.bool_] = self.rows("captions", numbers) & bit != 0
        return has


def _keys(captions: Sequence[str], bits: int) -> Collection[str]:
    return tuple(key for i, key in enumerate(captions) if bits >> i & 1)
