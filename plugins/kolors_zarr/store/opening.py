"""Finding a store, and what its manifest must say before anything is read by it."""

from __future__ import annotations

import json
import re
from math import prod

from kolors_kernel.errors import DataError
from kolors_zarr.store.damage import REMEDY, unreadable
from kolors_zarr.store.layout import (
    ANY,
    ARRAY_DTYPES,
    ATTRIBUTE,
    CAPTION,
    MANIFEST,
    MOST_ROW_BYTES,
    MOST_SAMPLES,
    MOST_SHARD_ROWS,
    MOST_SHARDS,
    PARTS,
    TEXT,
    VERSION,
    is_key,
)
from kolors_zarr.store.manifest import Column, Manifest
from kolors_zarr.store.places import Place

_GROUP = re.compile(rf"{ANY}|[1-9]\d{{0,4}}x[1-9]\d{{0,4}}")
_KINDS = {"id": "string", "tags": "string", "image": "bytes", **dict.fromkeys(ARRAY_DTYPES, "array")}


def read_manifest(place: Place) -> Manifest:
    """Return the manifest of the store at a place.

    Raises DataError where there is no store, none that is published, one of another version, one that may not be
    read, or one that names what no store has.
    """
    where = f"{place.url}/{MANIFEST}"
    try:
        data = place.read(MANIFEST)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(_reason_for_none(place)) from error
    except OSError as error:
        raise unreadable(place, MANIFEST, error) from error
    manifest = Manifest.from_bytes(data, where=where)
    wrong = _misfit(manifest)
    if wrong is not None:
        raise DataError(f"{where} {wrong}; {REMEDY}")
    return manifest


def _reason_for_none(place: Place) -> str:
    try:
        if next(iter(place.keys(f"{PARTS}/")), None) is not None:
            return f"the store {place.url} is still being written: it has {PARTS}/ and no {MANIFEST}; publish it first"
        attributes = json.loads(place.read("zarr.json"))["attributes"]
        version = attributes[ATTRIBUTE]["version"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"there is no store at {place.url}: it has no {MANIFEST}"
    if version == VERSION:
        return f"the store {place.url} was never published, or has lost its {MANIFEST}; {REMEDY}"
    return f"the store {place.url} is of format version {version}, and this installation reads {VERSION}; write it anew"


def _misfit(manifest: Manifest) -> str | None:
    """Say what no store that was written by this package has; names that lead out of the store above all."""
    names = [group.name for group in manifest.groups]
    if manifest.samples > MOST_SAMPLES or manifest.shards > MOST_SHARDS or manifest.shard_rows > MOST_SHARD_ROWS:
        return (
            f"has {manifest.samples} samples in {manifest.shards} shards of {manifest.shard_rows} rows; no store has "
            f"more than {MOST_SAMPLES}, {MOST_SHARDS} and {MOST_SHARD_ROWS}"
        )
    if manifest.text is not None and (manifest.text.width + manifest.text.pooled) * 4 > MOST_ROW_BYTES:
        return f"has conditioning of {manifest.text.width} and {manifest.text.pooled} numbers, which no store has"
    if len(set(names)) < len(names):
        return "has a group twice"
    for key in (*manifest.captions, *manifest.tags):
        if not is_key(key):
            return f"names {key!r}, which is no name of a caption or a tag"
    for group in manifest.groups:
        if not _GROUP.fullmatch(group.name):
            return f"names the group {group.name!r}; a group is HEIGHTxWIDTH or {ANY}"
        if group.columns.keys() != manifest.groups[0].columns.keys():
            return f"has other columns in {group.name} than in {names[0]}"
        wrong = next((name for name, column in group.columns.items() if not _is_known(name, column)), None)
        if wrong is not None:
            return f"has a column {wrong!r} in {group.name} as {group.columns[wrong]}, which no store has"
        if not {"id", "tags"} <= group.columns.keys():
            return f"has no ids and tags in {group.name}"
    return None


def _is_known(name: str, column: Column) -> bool:
    for prefix, kind in ((CAPTION, "string"), (TEXT, "bytes")):
        if name.startswith(prefix):
            return column.kind == kind and is_key(name.removeprefix(prefix))
    if column.kind != _KINDS.get(name):
        return False
    if column.kind != "array":
        return True
    return column.dtype in ARRAY_DTYPES[name] and len(column.shape) == 3 and 4 * prod(column.shape) <= MOST_ROW_BYTES
