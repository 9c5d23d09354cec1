"""All of a data source at once: its records, and its pictures with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor

from kolors_kernel.errors import DataError, RecipeError
from kolors_kernel.protocols import DataSource, SupportsParts
from kolors_kernel.values import Batch, SampleRecord

_AT_A_TIME = 1024
TAGS = ("concept", "style", "group", "split", "name_en", "name_zh")


class SupportsRecords(Protocol):
    """A data source that tells its records without reading a picture."""

    def records(self) -> list[SampleRecord]:
        """Return the record of every sample."""


@dataclass(frozen=True)
class Gallery:
    """Pictures [N, 3, H, W] in [-1, 1] on the CPU, and their N records."""

    pictures: Tensor
    records: Sequence[SampleRecord]


def read_records(source: DataSource, groups: Sequence[str] | None) -> list[SampleRecord]:
    """Return the records of a source that are in one of the groups, or all where these are None.

    Raises DataError when a record lacks one of TAGS, RecipeError when there is no record in a group, or none at all.
    """
    if hasattr(source, "records"):
        every = cast(SupportsRecords, source).records()
    else:
        every = [record for batch in _as_stored(source) for record in batch.records]
    wanted = _wanted(every, groups)
    return [record for record in every if record.id in wanted]


def read_gallery(source: DataSource, groups: Sequence[str] | None) -> Gallery:
    """Return the pictures of a source that are in one of the groups, or all where these are None.

    Raises what `read_records` does, and DataError when the source gives no pictures.
    """
    batches = list(_as_stored(source))
    wanted = _wanted((record for batch in batches for record in batch.records), groups)
    pictures, records = list[Tensor](), list[SampleRecord]()
    for batch in batches:
        if batch.images is None:
            raise DataError("the data gives no images to compare with; set its pictures: images")
        for record, image in zip(batch.records, batch.images, strict=True):
            if record.id in wanted:
                pictures.append(image.float() / 127.5 - 1)
                records.append(record)
    return Gallery(torch.stack(pictures), records)


def _as_stored(source: DataSource) -> Iterator[Batch]:
    """Yield every sample once, in the order of the store."""
    if not hasattr(source, "parts"):
        raise RecipeError(f"{type(source).__name__} cannot be read in parts, so not all of it is seen; use 'zarr'")
    parted = cast(SupportsParts, source)
    for part in parted.parts(_AT_A_TIME):
        yield from parted.read(part)


def _wanted(records: Iterable[SampleRecord], groups: Sequence[str] | None) -> set[str]:
    """Return the ids of the records that are in one of the groups."""
    by_group: dict[str, set[str]] = {}
    for record in records:
        missing = [tag for tag in TAGS if tag not in record.tags]
        if missing:
            raise DataError(f"sample '{record.id}' has no tag {', '.join(missing)}, which the demo's store has")
        by_group.setdefault(record.tags["group"], set()).add(record.id)
    for group in groups or ():
        if group not in by_group:
            raise RecipeError(f"no picture is in the group '{group}'; known: {', '.join(sorted(by_group))}")
    ids = set[str]().union(*(by_group[group] for group in (by_group if groups is None else groups)))
    if not ids:
        raise RecipeError("no picture is left; name some groups, or null for all")
    return ids
