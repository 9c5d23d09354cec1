"""Whether a column is stored as the direct reader knows it, by its zarr.json."""

from __future__ import annotations

import json
from typing import Any

from kolors_kernel.errors import DataError
from kolors_zarr.store.damage import REMEDY, read_needed
from kolors_zarr.store.documents import samples_document
from kolors_zarr.store.manifest import Group
from kolors_zarr.store.places import Place


def reason_to_fall_back(place: Place, key: str, group: Group, *, column: str, shard_rows: int) -> str | None:
    """Return why the direct reader cannot read a column of a group, or None where it can.

    Raises DataError when its zarr.json at `key` is missing or damaged, or is of other rows than the manifest says.
    """
    where = f"{place.url}/{key}/zarr.json"
    text = read_needed(place, f"{key}/zarr.json")
    wanted = json.loads(samples_document(group.columns[column], shards=group.shards, shard_rows=shard_rows))
    try:
        found = {"storage_transformers": [], **json.loads(text)}
    except (ValueError, TypeError) as error:
        raise DataError(f"{where} is damaged: {error!r}; {REMEDY}") from error
    for name in ("zarr_format", "node_type", "shape", "data_type"):
        if found.get(name) != wanted[name]:
            raise DataError(f"{where} says {name} {found.get(name)}, and the manifest {wanted[name]}; {REMEDY}")
    for name in ("chunk_grid", "chunk_key_encoding", "codecs", "storage_transformers"):
        if found.get(name) != wanted[name]:
            return f"its {name} are {_in_short(found.get(name))} instead of {_in_short(wanted[name])}"
    return None


def _in_short(value: Any) -> str:
    """Return metadata of zarr by its names: sharding_indexed(chunk_shape 1x4, codecs bytes, crc32c, ...)."""
    if isinstance(value, dict) and "name" in value:
        settings = value.get("configuration") or {}
        return f"{value['name']}({', '.join(f'{name} {_in_short(each)}' for name, each in settings.items())})"
    if isinstance(value, list):
        return f"[{', '.join(map(_in_short, value))}]"
    return str(value)
