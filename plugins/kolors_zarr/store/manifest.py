"""The manifest: which samples a store has, and where. Readers trust nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError

from kolors_kernel.errors import DataError
from kolors_zarr.store.checksums import crc32c
from kolors_zarr.store.layout import VERSION

ColumnKind = Literal["string", "bytes", "array"]


class Column(BaseModel):
    """A column of samples: what its rows are; for an array, [*shape] of `dtype`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: ColumnKind
    dtype: str = ""
    shape: tuple[PositiveInt, ...] = ()


class TextForm(BaseModel):
    """How the bytes of a `text_KEY` element are cut: see `kolors_zarr.store.conditioning`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: Literal["float16", "float32"]
    width: PositiveInt
    pooled: PositiveInt


class Group(BaseModel):
    """One bucket: its samples and shards, numbered through from where the groups before it end."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    samples: NonNegativeInt
    shards: NonNegativeInt
    columns: Mapping[str, Column]


class Manifest(BaseModel):
    """What is published. `edition` counts publications; the index is in the folder of that number."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = VERSION
    edition: PositiveInt
    shard_rows: PositiveInt
    groups: tuple[Group, ...]
    captions: tuple[str, ...] = ()
    """The caption keys, in the order of their bits in the index."""
    tags: Mapping[str, tuple[str, ...]] = {}
    """The vocabularies of the tags that the index has."""
    text: TextForm | None = None
    """How conditioning is stored, if there is any."""
    buckets: tuple[tuple[int, int], ...] = ()
    """The sizes by which encoded pictures were put into groups; none where the groups are their own sizes."""
    refused: NonNegativeInt = 0
    """How many inputs were left out; their names and reasons are in refused.jsonl beside this."""
    written_by: Mapping[str, str] = {}
    """Packages and their versions."""

    @property
    def samples(self) -> int:
        """The samples of the store."""
        return sum(group.samples for group in self.groups)

    @property
    def shards(self) -> int:
        """The shards of each column of the store."""
        return sum(group.shards for group in self.groups)

    def to_bytes(self) -> bytes:
        """Return the manifest as it is stored: JSON with the CRC-32C of all else in it."""
        return sealed(self.model_dump(mode="json"))

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str) -> Self:
        """Read a manifest. Raises DataError, calling it `where`, when it is damaged or of another version."""
        try:
            found: dict[str, Any] = json.loads(data)
            version = int(found["version"])
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise DataError(f"{where} is damaged or no manifest: {error!r}; restore or rebuild the store") from error
        if version != VERSION:
            newer = "upgrade kolors-kernel" if version > VERSION else "write the store anew"
            raise DataError(f"{where} is of format version {version}, and this installation reads {VERSION}; {newer}")
        try:
            return cls.model_validate(unsealed(data, where=where))
        except ValidationError as error:
            raise DataError(f"{where} is damaged: {error}; restore or rebuild the store") from error


def sealed(data: Mapping[str, Any]) -> bytes:
    """Return JSON with the CRC-32C of all else in it."""
    return _text({**data, "crc32c": crc32c(_text(data))})


def unsealed(data: bytes, *, where: str) -> dict[str, Any]:
    """Return what was sealed. Raises DataError, calling it `where`, when it is not as it was written."""
    try:
        found: dict[str, Any] = json.loads(data)
        checksum = found.pop("crc32c")
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise DataError(f"{where} is damaged: {error!r}; restore or rebuild the store") from error
    if crc32c(_text(found)) != checksum:
        raise DataError(f"{where} does not match its checksum; restore or rebuild the store")
    return found


def _text(data: Mapping[str, Any] | Sequence[Any]) -> bytes:
    return json.dumps(data, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
