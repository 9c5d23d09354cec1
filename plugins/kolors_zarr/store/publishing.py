"""Publishing: part rows become the index and the manifest, and from then on there is a store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib.metadata import version

from kolors_kernel.errors import DataError
from kolors_zarr.store.checksums import CHECKSUM_BYTES, crc32c
from kolors_zarr.store.documents import group_document, index_document, samples_document
from kolors_zarr.store.index_writing import Index
from kolors_zarr.store.layout import (
    ATTRIBUTE,
    INDEX,
    INDEX_CHUNK,
    MANIFEST,
    PARTS,
    REFUSED,
    SAMPLES,
    VERSION,
    chunk_key,
    column_key,
    index_key,
    part_key,
)
from kolors_zarr.store.manifest import Column, Group, Manifest, TextForm
from kolors_zarr.store.parts import PartRow
from kolors_zarr.store.places import Place
from kolors_zarr.store.refused import Refused, lines_of
from kolors_zarr.store.requests import Requests

_AT_ONCE = 16
"""Requests in flight: publishing is thousands of small objects, and a remote place answers each late."""
_EDITION = 1


def publish(
    place: Place,
    parts: Sequence[tuple[str, int]],
    *,
    samples: int,
    shard_rows: int,
    buckets: Sequence[tuple[int, int]] = (),
    refused: Iterable[Refused] = (),
) -> Manifest:
    """Make a store of finished parts, each (group, shard), in the store's order; they have up to `samples` samples.

    Raises ValueError when the parts do not hold the same things, DataError when one is missing, when there are no
    samples, or when someone else published first. Memory is that of the index and of its largest column.
    """
    index, left_out = Index(samples=samples, shards=len(parts)), list(refused)
    with Requests(_AT_ONCE) as requests:
        groups = _gathered(requests.answers(partial(_read, place), parts), index, left_out)
        if not index.samples:
            raise DataError(f"there are no samples to store in {place.url}; {len(left_out)} inputs were refused")
        manifest = Manifest(
            edition=_EDITION,
            shard_rows=shard_rows,
            groups=groups.listed(),
            captions=index.caption_keys,
            tags=index.vocabularies(),
            text=groups.text,
            buckets=tuple(buckets),
            refused=len(left_out),
            written_by={name: version(name) for name in ("kolors-kernel", "numpy")},
        )
        for _ in requests.answers(lambda item: place.write(*item), _objects(manifest, index, left_out)):
            pass
    if not place.create(MANIFEST, manifest.to_bytes()):
        raise DataError(f"the store {place.url} was published by another process meanwhile; it is whole")
    place.clear(PARTS + "/")
    return manifest


def _gathered(rows: Iterable[PartRow], index: Index, refused: list[Refused]) -> _Groups:
    """Take all rows into the index and what they refused into the list; return their groups."""
    groups = _Groups()
    for row in rows:
        refused += row.refused
        if row.samples:
            groups.add(row)
            index.add(row)
    return groups


class _Groups:
    """What the parts of each group hold, checked to be alike."""

    def __init__(self) -> None:
        self._firsts: dict[str, PartRow] = {}
        self._samples: dict[str, int] = {}
        self._shards: dict[str, int] = {}
        self._columns: dict[str, Column] = {}

    def add(self, row: PartRow) -> None:
        """Take in a part. Raises ValueError, naming its first sample, when it differs from those before."""
        _require_alike(row, next(iter(self._firsts.values()), row), _everywhere)
        _require_alike(row, self._firsts.setdefault(row.group, row), _in_a_group)
        self._samples[row.group] = self._samples.get(row.group, 0) + row.samples
        self._shards[row.group] = row.shard + 1
        self._columns.update(row.columns)

    @property
    def text(self) -> TextForm | None:
        """How conditioning is stored, if there is any."""
        return next(iter(self._firsts.values())).text

    def listed(self) -> tuple[Group, ...]:
        """Return the groups, each with every column that any of them has."""
        return tuple(
            Group(
                name=name,
                samples=self._samples[name],
                shards=self._shards[name],
                columns={key: first.columns.get(key, self._columns[key]) for key in sorted(self._columns)},
            )
            for name, first in self._firsts.items()
        )


def _require_alike(row: PartRow, first: PartRow, describe: Callable[[PartRow], str]) -> None:
    here, there = describe(row), describe(first)
    if here != there:
        raise ValueError(f"sample '{row.first}' and those after it hold {here}, but '{first.first}' holds {there}")


def _everywhere(row: PartRow) -> str:
    """Return in words what must be the same in all groups."""
    arrays = [f"{name} in {column.dtype}" for name, column in sorted(row.columns.items()) if column.kind == "array"]
    return ", ".join([row.holds, *arrays, *([f"text with {row.text}"] if row.text else [])])


def _in_a_group(row: PartRow) -> str:
    """Return in words what must be the same within a group."""
    columns = sorted(row.columns.items())
    return ", ".join(f"{name} {list(column.shape)}" for name, column in columns if column.kind == "array")


def _read(place: Place, part: tuple[str, int]) -> PartRow:
    key = part_key(*part)
    try:
        return PartRow.from_bytes(place.read(key), where=f"{place.url}/{key}")
    except FileNotFoundError as error:
        raise DataError(f"{place.url}/{key} is missing: this part was not written; run what writes it again") from error


def _objects(manifest: Manifest, index: Index, refused: Sequence[Refused]) -> Iterator[tuple[str, bytes]]:
    """Yield keys and contents of the index, of all that zarr needs to find it and the samples, and what was refused."""
    if refused:
        yield REFUSED, lines_of(refused)
    yield "zarr.json", group_document({ATTRIBUTE: {"version": VERSION}})
    buckets = (f"{SAMPLES}/{group.name}" for group in manifest.groups)
    for key in (SAMPLES, INDEX, f"{INDEX}/{manifest.edition}", *buckets):
        yield f"{key}/zarr.json", group_document({})
    for group in manifest.groups:
        for name, column in group.columns.items():
            document = samples_document(column, shards=group.shards, shard_rows=manifest.shard_rows)
            yield f"{column_key(group.name, name)}/zarr.json", document
    for name, values in index.columns():
        key = index_key(manifest.edition, name)
        yield f"{key}/zarr.json", index_document(str(values.dtype), values.shape)
        rows = min(len(values), INDEX_CHUNK)
        for chunk, start in enumerate(range(0, len(values), rows)):
            data = values[start : start + rows].astype(values.dtype.newbyteorder("<")).tobytes()
            data += bytes(rows * values[0].nbytes - len(data))
            yield chunk_key(key, chunk, axes=values.ndim), data + crc32c(data).to_bytes(CHECKSUM_BYTES, "little")
