"""Which samples of a store are trained on, in which bucket, and what became of the others."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kolors_kernel.errors import DataError
from kolors_kernel.protocols import SampleFilter
from kolors_kernel.values import SampleRecord
from kolors_zarr.buckets.assign import Bucketing
from kolors_zarr.loading.report import NAMED, Report, Size
from kolors_zarr.store.layout import TAG, group_size
from kolors_zarr.store.reading import Store

Numbers: TypeAlias = range | NDArray[np.integer[Any]]
Mask: TypeAlias = NDArray[np.bool_]
Named: TypeAlias = tuple[str, SampleFilter]
"""A filter and what a recipe calls it."""
_AT_ONCE = 1 << 20
"""Samples that are looked at together."""
_WORDS = frozenset({"zh", "en", "original", "synthetic"})
"""What captions are chosen by, whether a store has them or not."""
_RECORDS = 4096
"""Records that are in memory together."""


@dataclass(frozen=True)
class Bucket:
    """The samples of one size, (height, width) in pixels, by their numbers in the store, ascending."""

    size: Size
    numbers: Numbers

    def at(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of the samples at these places of the bucket."""
        if isinstance(self.numbers, range):
            return places + self.numbers.start
        return self.numbers[places].astype(np.int64)


def select(
    store: Store, bucketing: Bucketing | None, *, filters: Sequence[Named], requires: Sequence[Named], report: Report
) -> list[Bucket]:
    """Return the buckets of the samples that are used, and write into the report what was found.

    The groups of the store are the buckets where there is no `bucketing`, or where they were made by the same one.
    Raises DataError when no sample is left, or when one is that a filter in `requires` drops.
    """
    kept = np.ones(store.samples, bool)
    for name, filter in filters:
        for reason, numbers in _dropped(store, filter, kept):
            kept[numbers] = False
            report.dropped[f"{name}: {reason}"] += len(numbers)
    if bucketing is None or _made_groups(bucketing, store):
        buckets = list(_groups(store, kept))
    else:
        buckets = list(_assigned(store, bucketing, kept, report))
    for name, filter in requires:
        _require(store, name, filter, kept)
    buckets = [bucket for bucket in buckets if len(bucket.numbers)]
    report.buckets = {bucket.size: len(bucket.numbers) for bucket in buckets}
    _count_captions(store, kept, report)
    if not buckets:
        raise DataError(f"no sample of {store.place.url} is left of {store.samples}: {'; '.join(report.lost())}")
    return buckets


def _dropped(store: Store, filter: SampleFilter, kept: Mask) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Yield reasons, and the numbers of samples that a filter drops for them, of those that were kept so far.

    A filter that says which tags it reads is asked once for each combination of their values.
    """
    tags: frozenset[str] | None = getattr(filter, "reads", None)
    indexed = tags is not None and store.manifest.tags.keys() >= tags
    for start in range(0, len(kept), _AT_ONCE if indexed else _RECORDS):
        numbers = start + np.flatnonzero(kept[start : start + (_AT_ONCE if indexed else _RECORDS)])
        if not len(numbers):
            continue
        if tags is not None and indexed:
            records, which = _combinations(store, sorted(tags), numbers)
        else:
            records, which = store.records(numbers), np.arange(len(numbers))
        reasons = [filter.reason_to_drop(record) for record in records]
        for reason in sorted({reason for reason in reasons if reason is not None}):
            yield reason, numbers[np.array([each == reason for each in reasons])[which]]


def _combinations(
    store: Store, tags: Sequence[str], numbers: NDArray[np.int64]
) -> tuple[list[SampleRecord], NDArray[np.intp]]:
    """Return a record with just these tags for each combination of their values, and which one each sample has."""
    columns = [store.rows(TAG + tag, numbers) for tag in tags]
    which = np.zeros(len(numbers), np.intp)
    first = np.zeros(1, np.intp)
    for tag, codes in zip(tags, columns, strict=True):
        together = which * (len(store.manifest.tags[tag]) + 1) + codes
        _, first, which = np.unique(together, return_index=True, return_inverse=True)
    found: list[dict[str, str]] = [{} for _ in first]
    for tag, codes in zip(tags, columns, strict=True):
        for record, code in zip(found, codes[first].tolist(), strict=True):
            if code:
                record[tag] = store.manifest.tags[tag][code - 1]
    return [SampleRecord("", (0, 0), {}, record) for record in found], which


def _require(store: Store, name: str, filter: SampleFilter, kept: Mask) -> None:
    found = list(_dropped(store, filter, kept))
    if found:
        count = sum(len(numbers) for _, numbers in found)
        reasons = "; ".join(sorted({reason for reason, _ in found})[:NAMED])
        first = [number for _, numbers in found for number in numbers[:NAMED].tolist()][:NAMED]
        ids = ", ".join(f"'{id}'" for id in store.read_strings("id", first))
        raise DataError(
            f"'{name}' must keep every sample of {store.place.url} that is used, and drops {count} of "
            f"{int(kept.sum())}: {reasons}; the first are {ids}. Leave them out by a filter, or use data without them"
        )


def _takes_all(bucketing: Bucketing) -> bool:
    return bucketing == Bucketing(bucketing.sizes, step=bucketing.step)


def _made_groups(bucketing: Bucketing, store: Store) -> bool:
    """Tell whether the groups of a store are what the bucketing would make."""
    groups = {group_size(group.name) for group in store.manifest.groups}
    return _takes_all(bucketing) and store.manifest.buckets == bucketing.sizes and groups <= {*bucketing.sizes}


def _groups(store: Store, kept: Mask) -> Iterator[Bucket]:
    for group, (start, stop) in zip(store.manifest.groups, pairwise(store.starts.tolist()), strict=True):
        yield Bucket(group_size(group.name), _compact(start + np.flatnonzero(kept[start:stop])))


def _assigned(store: Store, bucketing: Bucketing, kept: Mask, report: Report) -> Iterator[Bucket]:
    """Yield the buckets that the samples' own sizes lead to; those without one are no longer kept."""
    if len(bucketing.sizes) == 1 and _takes_all(bucketing):
        yield Bucket(bucketing.sizes[0], _compact(np.flatnonzero(kept)))
        return
    sizes = store.column("size")
    packed = np.zeros(len(kept), np.uint32)
    refused: dict[int, list[int]] = {}
    counts = np.zeros(256, np.int64)
    for start in range(0, len(kept), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        found = bucketing.assign(*sizes[part].T)
        packed[part] = found.sizes[:, 0].astype(np.uint32) << 16 | found.sizes[:, 1].astype(np.uint32)
        reasons = np.where(kept[part], found.reasons, 0)
        counts += np.bincount(reasons, minlength=256)
        for reason in np.unique(reasons[reasons > 0]).tolist():
            own = refused.setdefault(reason, [])
            own += (start + np.flatnonzero(reasons == reason)[: NAMED - len(own)]).tolist()
    for reason, first in sorted(refused.items()):
        named = zip(store.read_strings("id", first), sizes[first].tolist(), strict=True)
        words = [f"'{id}': {bucketing.sentence(reason, (height, width))}" for id, (height, width) in named]
        report.refused.append((int(counts[reason]), words))
    packed[~kept] = 0
    np.not_equal(packed, 0, out=kept)
    for size in np.unique(packed).tolist():
        if size:
            yield Bucket((size >> 16, size & 0xFFFF), _compact(np.flatnonzero(packed == size)))


def _compact(numbers: NDArray[np.int64]) -> Numbers:
    """Return ascending numbers as a range if there are no gaps, else in as few bytes as hold them."""
    if len(numbers) and numbers[-1] - numbers[0] + 1 == len(numbers):
        return range(int(numbers[0]), int(numbers[-1]) + 1)
    return numbers.astype(np.int32) if not len(numbers) or numbers[-1] < 2**31 else numbers


def _count_captions(store: Store, kept: Mask, report: Report) -> None:
    counts = np.bincount(store.column("captions")[kept], minlength=1)  # by which captions a sample has

    def without(wanted: Collection[str]) -> int:
        mask = sum(1 << bit for bit, key in enumerate(keys) if key in wanted)
        return int(counts[np.arange(len(counts)) & mask == 0].sum())

    keys = store.manifest.captions
    report.captions = {key: report.selected - without([key]) for key in keys}
    report.lacking["caption"] = without(keys)
    for word in sorted(_WORDS | {word for key in keys for word in key.split("_")}):
        report.lacking[word] = without([key for key in keys if word in key.split("_")])
