"""The job of the recipe verify_store."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, TypeAlias

import numpy as np

from kolors_kernel.errors import DataError
from kolors_kernel.graph import Graph, step
from kolors_zarr.importing.progress import counted
from kolors_zarr.store.damage import REMEDY, Damage, DamagedSamples
from kolors_zarr.store.layout import shard_key
from kolors_zarr.store.opening import read_manifest
from kolors_zarr.store.places import Folder, open_place
from kolors_zarr.store.reading import Store
from kolors_zarr.tools.census import shard_bytes
from kolors_zarr.tools.foundations import faults

if TYPE_CHECKING:
    from kolors_kernel.component import BuildContext
    from kolors_zarr.tools_config import VerifyStore

logger = logging.getLogger(__name__)
DAMAGED = "damaged.jsonl"
_SHOWN = 20
"""How many damaged objects the log names; the file has all."""


@dataclass(frozen=True)
class Shard:
    """One shard of each column: the `number`-th of a group, with the samples from `first` up to `stop`."""

    group: str
    number: int
    first: int
    stop: int

    def __str__(self) -> str:
        return f"shard {self.number} of {self.group}"


Damages: TypeAlias = Sequence[Damage]


@step(writes="damages")
def check(store: Store, shard: Shard) -> Damages:
    """Read every chunk of the shard in every column and compare its checksum."""
    (group,) = (group for group in store.manifest.groups if group.name == shard.group)
    found: list[Damage] = []
    for name, column in group.columns.items():
        key = shard_key(group.name, name, shard.number, axes=1 + len(column.shape))
        found += _damages(store, name, range(shard.first, shard.stop), key=key, first=shard.first)
    return found


def _damages(store: Store, column: str, numbers: range, *, key: str, first: int) -> list[Damage]:
    """Return what is wrong with a column in some samples, each looked at by itself where the system refuses to read."""
    try:
        return store.damages(column, numbers)
    except DataError as error:
        if len(numbers) > 1:
            each = (range(number, number + 1) for number in numbers)
            return [damage for one in each for damage in _damages(store, column, one, key=key, first=first)]
        id = None
        with suppress(DataError):
            (id,) = store.read_strings("id", numbers)
        return [Damage(numbers[0], id, key, numbers[0] - first, str(error))]


def verification() -> Graph:
    """Return what is done with one shard of each column."""
    return Graph([check], inputs=["shard"], outputs=["damages"], parts=["store"])


def checker(path: str) -> Callable[[Shard], Damages]:
    """Return what a worker does with a shard."""
    place, graph = open_place(path), verification()
    store = Store(Unmapped(place) if isinstance(place, Folder) else place)

    def work(shard: Shard) -> Damages:
        (damages,) = graph.run(store=store, shard=shard)
        return list(damages)

    return work


class Unmapped:
    """A folder that is read like any other place: where a disk fails, looking at mapped memory ends the process."""

    def __init__(self, folder: Folder) -> None:
        self.url, self.size, self.keys = folder.url, folder.size, folder.keys
        self.read, self.read_ranges = folder.read, folder.read_ranges
        self.write, self.create, self.clear = folder.write, folder.create, folder.clear


class VerifyJob:
    """Reads all of a store, index first, then one shard of each column after the other by whoever does the work."""

    def __init__(self, recipe: VerifyStore, ctx: BuildContext) -> None:
        self._recipe, self._ctx = recipe, ctx
        self.graphs = recipe.graphs()

    def run(self) -> Mapping[str, float]:
        """Return how many samples, objects and bytes were read and found as they were written.

        Raises DataError when anything is damaged or missing: what that is, is listed in damaged.jsonl.
        """
        place = open_place(self._recipe.path)
        manifest = read_manifest(place)
        with _listing(self._ctx.out / DAMAGED, store=place.url) as listing:
            for key, why in faults(place, manifest):
                listing.add_object(key, why)
            listing.raise_if_any("its index or its documents, so that no sample was looked at")
            store = Store(place)
            shards, workers = list(_shards(store)), self._recipe.workers.build(self._ctx)
            checked = workers.map(partial(checker, self._recipe.path), shards)
            for _, damages in counted(checked, len(shards), "checked shards"):
                listing.add_samples(damages)
            listing.raise_if_any(f"{listing.samples} of {store.samples} samples")
        sizes = np.concatenate([shard_bytes(store, name) for name in manifest.groups[0].columns])
        return {"samples": store.samples, "objects": int((sizes > 0).sum()), "bytes": int(sizes.sum()), "damaged": 0}


def _shards(store: Store) -> Iterator[Shard]:
    first, counts = 0, iter(store.column("count").tolist())
    for group in store.manifest.groups:
        for number in range(group.shards):
            stop = first + next(counts)
            if stop > first:
                yield Shard(group.name, number, first, stop)
            first = stop


@dataclass
class _Listing:
    """Damages as they are found: a line of JSON each, and a line of the log for each of the first objects."""

    file: TextIO
    store: str
    samples: int = 0
    keys: set[str] = field(default_factory=set)

    def add_object(self, key: str, why: str) -> None:
        """Note an object that is not of some samples only."""
        self._write({"number": None, "id": None, "key": key, "chunk": None, "why": why})
        self._say(key, why)

    def add_samples(self, damages: Damages) -> None:
        """Note damaged samples, those of an object one after another."""
        self.samples += len({damage.number for damage in damages})
        for key, group in groupby(damages, key=lambda damage: damage.key):
            those = list(group)
            for damage in those:
                self._write(asdict(damage))
            self._say(key, str(DamagedSamples(self.store, those)))

    def _write(self, fields: Mapping[str, object]) -> None:
        self.file.write(json.dumps({"store": self.store, **fields}, ensure_ascii=False) + "\n")

    def _say(self, key: str, words: str) -> None:
        self.keys.add(key)
        if len(self.keys) <= _SHOWN:
            logger.error("damaged: %s", words)

    def raise_if_any(self, what: str) -> None:
        """Raise DataError if there are damages, saying of what."""
        if self.keys:
            raise DataError(
                f"the store {self.store} is damaged: {what}; objects that are missing or not as they were written: "
                f"{len(self.keys)}, listed in {self.file.name}; {REMEDY}"
            )


@contextmanager
def _listing(path: Path, *, store: str) -> Iterator[_Listing]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        listing = _Listing(file, store)
        yield listing
    path.unlink()  # which is not reached when there are damages
