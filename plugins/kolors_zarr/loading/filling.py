"""One batch: the samples that a job names, read into memory that it is given. Without torch, for worker processes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from hashlib import blake2b
from math import prod
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from kolors_kernel.errors import DataError
from kolors_kernel.protocols import CaptionMix
from kolors_kernel.values import NO_CAPTION
from kolors_zarr.loading.ring import Memory
from kolors_zarr.pictures.fitting import anywhere, centre, fill
from kolors_zarr.store.conditioning import unpack_arrays
from kolors_zarr.store.damage import Damage, DamagedSamples
from kolors_zarr.store.layout import CAPTION, TEXT, group_name, group_size
from kolors_zarr.store.numbering import Located
from kolors_zarr.store.reading import Store

Array: TypeAlias = NDArray[Any]
Size: TypeAlias = tuple[int, int]
Place: TypeAlias = tuple[int, int, str, tuple[int, ...]]
"""Where an array is in a slot, from byte to byte, its dtype by the name that torch gives it too, and its shape."""
_ALIGNED = 64
"""Arrays in a slot begin at multiples of this many bytes."""
_TEXT_ROWS = 128
"""Rows of conditioning for which a slot has room; a text that has more after merging is rare, and kept beside it."""
_MOST_ATTEMPTS = 128
"""How often a batch is read anew without its damaged samples."""


class ChooseAll(Protocol):
    """What a caption mix may offer as `choose_all`: its choices for a batch without a record for each sample."""

    def __call__(
        self, ids: Sequence[str | None], there: Sequence[Collection[str]], *, seed: int, epoch: int
    ) -> list[str]:
        """Return the keys that `choose` would for samples of these ids, which have these captions."""


class Job(NamedTuple):
    """A batch to be read: numbers of samples in the store, their weights, and the bucket's height and width."""

    numbers: NDArray[np.int64]
    weight: NDArray[np.float32]
    size: Size
    seed: int
    epoch: int


@dataclass(frozen=True)
class Filled:
    """What is where: the places of arrays in a slot by their names, and arrays that are not there.

    numbers [B]: the samples that were read, which are others than the job's where one was damaged; ids: theirs, if
    they had to be read. keys: which caption each was given, and captions their texts.
    """

    numbers: NDArray[np.int64]
    places: Mapping[str, Place]
    loose: Mapping[str, Array]
    ids: Sequence[str | None] = ()
    keys: Sequence[str] = ()
    captions: Sequence[str] | None = None
    damages: Sequence[Damage] = ()


@dataclass
class _Arrays:
    """Cuts memory into arrays, one after another; one that it has no room for has memory of its own."""

    memory: Memory
    places: dict[str, Place] = field(default_factory=dict)
    loose: dict[str, Array] = field(default_factory=dict)
    end: int = 0

    def new(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Return an array that holds anything."""
        form, start = np.dtype(dtype), self.end
        stop = start + prod(shape) * form.itemsize
        if stop > len(self.memory):
            self.loose[name] = np.empty(shape, form)
            return self.loose[name]
        self.places[name], self.end = (start, stop, form.name, shape), aligned(stop)
        return self.memory[start:stop].view(form).reshape(shape)

    def drop(self, name: str) -> None:
        """Forget an array."""
        self.places.pop(name, None)
        self.loose.pop(name, None)


def aligned(size: int) -> int:
    """Return the bytes that an array of `size` bytes takes up in a slot."""
    return -(-size // _ALIGNED) * _ALIGNED


@dataclass(frozen=True)
class Filler:
    """Fills batches: `pictures` images or latents, and for `text` the captions or conditioning that `mix` chooses.

    Raises DamagedSamples, or DataError for a picture that cannot be decoded; with `damaged` "replace" such a sample
    makes place for a copy of another, of weight 0.
    """

    store: Store
    pictures: Literal["images", "latents"]
    text: Literal["captions", "conditioning"] | None
    mix: CaptionMix
    crop: Literal["random", "centre"]
    damaged: Literal["raise", "replace"]

    @cached_property
    def column(self) -> str:
        """The column that pictures are read from."""
        columns = self.store.manifest.groups[0].columns
        return "latents" if self.pictures == "latents" else "pixels" if "pixels" in columns else "image"

    def form(self, size: Size) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Return shape and dtype of one row of the pictures of a bucket."""
        if self.column == "image":
            return (*size, 3), np.dtype(np.uint8)
        (group,) = (group for group in self.store.manifest.groups if group.name == group_name(size))
        column = group.columns[self.column]
        return column.shape, np.dtype(column.dtype)

    def without_text(self) -> Filler:
        """Return what fills batches without text, and none at all where a sample is damaged."""
        return replace(self, text=None, damaged="raise")

    def bytes_of(self, batch: int, size: Size) -> int:
        """Return the memory for a batch of a bucket."""
        shape, dtype = self.form(size)
        rows = [6 * 4, 4, prod(shape) * dtype.itemsize]
        form = self.store.manifest.text
        if self.text == "conditioning" and form is not None:
            width = np.dtype(form.dtype).itemsize
            rows += [_TEXT_ROWS * form.width * width, form.pooled * width, _TEXT_ROWS * 4]
        return sum(aligned(batch * row) for row in rows)

    def __call__(self, job: Job, memory: Memory) -> Filled:
        """Read the samples of a job into memory, and say what is where."""
        damages, attempt = dict[int, Damage](), 0
        while True:
            try:
                return self._filled(job, _Arrays(memory), list(damages.values()))
            except DamagedSamples as error:
                if self.damaged == "raise" or attempt == _MOST_ATTEMPTS:
                    raise
                damages |= {each.number: each for each in error.damages}
                attempt += 1
                job = self._without(job, list(damages), attempt=attempt)

    def _filled(self, job: Job, arrays: _Arrays, damages: Sequence[Damage]) -> Filled:
        where, ids = self.store.locate(job.numbers), list[str | None]()
        if self.text is not None or self.column == "image":
            ids = self.store.read_strings("id", where)
        size = arrays.new("size", (len(where), 6), np.float32)
        size[:, :2] = self.store.rows("size", where)
        arrays.new("weight", job.weight.shape, np.float32)[:] = job.weight
        shape, dtype = self.form(job.size)
        pictures = arrays.new(self.pictures, (len(where), *shape), dtype)
        if self.column == "image":
            size[:, 2:4], size[:, 4:] = self._decode(job, where, ids, pictures), job.size
        else:
            self.store.read_into(self.column, where, pictures)
            size[:, 2:] = self.store.rows("crop", where)
        keys, captions = list[str](), None
        if self.text is not None:
            keys = self._chosen(job, where, ids)
        if self.text == "captions":
            captions = self._captions(where, keys)
        elif self.text == "conditioning":
            self._conditioning(where, keys, arrays)
        return Filled(job.numbers, arrays.places, arrays.loose, ids, keys, captions, damages)

    def _chosen(self, job: Job, where: Located, ids: Sequence[str | None]) -> list[str]:
        choose_all: ChooseAll | None = getattr(self.mix, "choose_all", None)
        if choose_all is None:
            records = self.store.records(where, ids)
            return [self.mix.choose(record, seed=job.seed, epoch=job.epoch) for record in records]
        return choose_all(ids, self.store.captions(where), seed=job.seed, epoch=job.epoch)

    def _decode(self, job: Job, where: Located, ids: Sequence[str | None], pictures: Array) -> list[Size]:
        corners, damages = list[Size](), list[Damage]()
        for row, data in enumerate(self.store.read_views("image", where)):
            corner = centre
            if self.crop == "random":
                corner = partial(anywhere, key=_crop_key(job.seed, job.epoch, str(ids[row])))
            try:
                name = f"sample '{ids[row]}' in {self.store.place.url}"
                corners.append(fill(data, pictures[row], where=name, corner=corner))
            except DataError as error:
                if self.damaged == "raise":
                    raise
                damages.append(Damage(int(job.numbers[row]), ids[row], "image", 0, str(error)))
        if damages:
            raise DamagedSamples(self.store.place.url, damages)
        return corners

    def _captions(self, where: Located, keys: Sequence[str]) -> list[str]:
        texts = [""] * len(keys)
        for key, rows in _rows_by_key(keys).items():
            if key != NO_CAPTION:
                found = self.store.read_strings(CAPTION + key, where.only(rows))
                for row in rows:
                    texts[row] = found[row] or ""
        return texts

    def _conditioning(self, where: Located, keys: Sequence[str], arrays: _Arrays) -> None:
        elements = [memoryview(b"")] * len(keys)
        for key, rows in _rows_by_key(keys).items():
            for row, element in zip(rows, self.store.read_views(TEXT + key, where.numbers[rows]), strict=True):
                elements[row] = element
        form = self.store.manifest.text
        assert form is not None
        if unpack_arrays(elements, form, arrays.new).key_bias is None:
            arrays.drop("key_bias")

    def _without(self, job: Job, bad: Sequence[int], *, attempt: int) -> Job:
        numbers, weight, size = job.numbers.copy(), job.weight.copy(), job.size
        lost = np.isin(numbers, bad)
        if lost.all():
            numbers[:], size = self._elsewhere(job, attempt)
        else:
            numbers[lost] = numbers[~lost][0]
        weight[lost] = 0
        return job._replace(numbers=numbers, weight=weight, size=size)

    def _elsewhere(self, job: Job, attempt: int) -> tuple[int, Size]:
        """Return a sample for a batch that is damaged as a whole, and its bucket: of the same group, then of any.

        Each attempt goes further away, for damage comes in shards.
        """
        starts, number = self.store.starts, int(job.numbers[0])
        group = int(starts.searchsorted(number, "right")) - 1
        if attempt < _MOST_ATTEMPTS // 2:
            start, end = starts[group : group + 2].tolist()
            return start + (number + attempt**2 - start) % (end - start), job.size
        number = (number + attempt**2) % self.store.samples
        group = int(starts.searchsorted(number, "right")) - 1
        return number, job.size if self.column == "image" else group_size(self.store.manifest.groups[group].name)


def _rows_by_key(keys: Sequence[str]) -> Mapping[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        rows.setdefault(key, []).append(row)
    return rows


def _crop_key(seed: int, epoch: int, id: str) -> int:
    digest = blake2b(f"{seed} {epoch} {id}".encode(), digest_size=8, person=b"kolors crop").digest()
    return int.from_bytes(digest, "little")
