"""Whether all that a store's samples are found by is as it was written: documents, index, the list of the refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from math import ceil, prod
from typing import Any, TypeAlias

import numpy as np

from kolors_kernel.errors import DataError
from kolors_zarr.store.column_form import reason_to_fall_back
from kolors_zarr.store.damage import REMEDY, read_needed
from kolors_zarr.store.index_reading import read_chunk
from kolors_zarr.store.layout import INDEX, OBJECT, REFUSED, SAMPLES, TAG, chunk_key, column_key, index_key
from kolors_zarr.store.manifest import Manifest
from kolors_zarr.store.places import Place
from kolors_zarr.store.refused import refused_of

Check: TypeAlias = Callable[[], object]
_DOCUMENT = "zarr.json"


def faults(place: Place, manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield the keys of objects that are missing or damaged, each with the reason."""
    for key, check in _checks(place, manifest):
        try:
            check()
        except DataError as error:
            yield key, str(error)
        except (ValueError, KeyError, TypeError, IndexError) as error:  # of a document that is not one
            yield key, f"{place.url}/{key} is damaged: {error!r}; {REMEDY}"


def _checks(place: Place, manifest: Manifest) -> Iterator[tuple[str, Check]]:
    for folder in ("", f"{SAMPLES}/", f"{INDEX}/", f"{INDEX}/{manifest.edition}/"):
        yield f"{folder}{_DOCUMENT}", partial(_require_group, place, f"{folder}{_DOCUMENT}")
    for group in manifest.groups:
        key = f"{SAMPLES}/{group.name}/{_DOCUMENT}"
        yield key, partial(_require_group, place, key)
        for name in group.columns:
            key = column_key(group.name, name)
            check = partial(reason_to_fall_back, place, key, group, column=name, shard_rows=manifest.shard_rows)
            yield f"{key}/{_DOCUMENT}", check
    of_samples = ["size", "crop", "captions", *(TAG + name for name in manifest.tags)]
    of_shards = ["count", *(OBJECT + name for name in manifest.groups[0].columns)]
    for names, length in ((of_samples, manifest.samples), (of_shards, manifest.shards)):
        for name in names:
            yield from _column(place, index_key(manifest.edition, name), length)
    if manifest.refused:
        yield REFUSED, partial(refused_of, place, manifest)


def _column(place: Place, key: str, length: int) -> Iterator[tuple[str, Check]]:
    """Yield the checks of a column of the index; those of its chunks only where its document says what they are."""
    form: list[tuple[int, ...]] = []
    yield f"{key}/{_DOCUMENT}", partial(_read_form, place, f"{key}/{_DOCUMENT}", length, form)
    for chunk, *tail, size in form:
        for number in range(ceil(length / chunk)):
            each = chunk_key(key, number, axes=1 + len(tail))
            yield each, partial(read_chunk, place, each, size)


def _read_form(place: Place, key: str, length: int, form: list[tuple[int, ...]]) -> None:
    """Add the shape of a chunk and its bytes to `form`."""
    document = _read(place, key)
    chunk = document["chunk_grid"]["configuration"]["chunk_shape"]
    if document["shape"][0] != length:
        raise DataError(f"{place.url}/{key} is of {document['shape'][0]} rows, and the manifest of {length}; {REMEDY}")
    form.append((*chunk, np.dtype(document["data_type"]).itemsize * prod(chunk)))


def _require_group(place: Place, key: str) -> None:
    if _read(place, key)["node_type"] != "group":
        raise DataError(f"{place.url}/{key} is not the document of a group; {REMEDY}")


def _read(place: Place, key: str) -> dict[str, Any]:
    found = json.loads(read_needed(place, key))
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    return found
