"""What is in a store, counted from its index alone: no sample is read."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from kolors_kernel.errors import RecipeError
from kolors_zarr.buckets.assign import Bucketing
from kolors_zarr.loading.report import Report
from kolors_zarr.loading.selection import Bucket, select
from kolors_zarr.order.plan import Plan
from kolors_zarr.store.layout import OBJECT, TAG, group_name, group_size
from kolors_zarr.store.reading import Store
from kolors_zarr.store.refused import refused_of

ASPECTS = 2.0 ** np.linspace(-2.0625, 2.0625, 34)
"""Limits of the classes of aspect ratio, an eighth of an octave each; 1:1 is in the middle of one."""
_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Tag:
    """One tag of the index: how many samples have each of its most frequent values.

    `others` samples have one of `values_not_shown` rarer values, and `lacking` samples have none.
    """

    values: Mapping[str, int]
    others: int
    values_not_shown: int
    lacking: int


@dataclass(frozen=True)
class Reason:
    """Why `inputs` were refused, numbers left out, and one of them."""

    reason: str
    inputs: int
    example: str


@dataclass(frozen=True)
class Epoch:
    """What an epoch is in batches of `batch` on each of `world` ranks.

    `buckets` has, by name: samples, full_batches (of all ranks), left_over (samples that fill none), padded (copies
    of weight 0 that are trained beside them).
    """

    batch: int
    world: int
    steps: int
    full_steps: int
    buckets: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class Census:
    """What is in a store.

    aspects counts samples by width / height, a class for each two neighbours in ASPECTS, those beyond in the first and
    the last. captions counts samples that have one of a key, languages and origins those that have one of any such
    key. no_bucket says how many samples have none for the reason of the one named. bytes are those of each column.
    """

    store: str
    samples: int
    shards: int
    shard_rows: int
    buckets: Mapping[str, int]
    no_bucket: Mapping[str, int]
    aspects: Sequence[int]
    captions: Mapping[str, int]
    without_caption: int
    languages: Mapping[str, int]
    origins: Mapping[str, int]
    tags: Mapping[str, Tag]
    refused: int
    reasons: Sequence[Reason]
    bytes: Mapping[str, int]
    written_by: Mapping[str, str]
    epoch: Epoch

    def to_json(self) -> str:
        """Return it as JSON for people and programs."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=1) + "\n"


@dataclass(frozen=True)
class Division:
    """The samples of a store by bucket, and how many have none, by the first one of a reason."""

    buckets: Sequence[Bucket]
    no_bucket: Mapping[str, int]


def divide(store: Store, bucketing: Bucketing | None) -> Division:
    """Return the buckets that pictures would be trained in, or without a bucketing the store's groups.

    Raises DataError when no sample has a bucket, RecipeError when the store's pictures are already cut.
    """
    if bucketing is None:
        names = [group.name for group in store.manifest.groups]
        spans = zip(names, store.starts[:-1].tolist(), store.starts[1:].tolist(), strict=True)
        return Division([Bucket(group_size(name), range(start, stop)) for name, start, stop in spans], {})
    if "images" not in store.holds or "pixels" in store.manifest.groups[0].columns:
        raise RecipeError(f"the pictures of {store.place.url} are already cut to their buckets: leave `buckets` out")
    report = Report(store.place.url, store.samples)
    found = select(store, bucketing, filters=[], requires=[], report=report)
    return Division(found, {first[0]: count for count, first in report.refused})


def take(store: Store, division: Division, *, batch: int, world: int, top: int) -> Census:
    """Count what is in a store, with the `top` most frequent values of each tag and reasons of refusal."""
    manifest = store.manifest
    buckets = {group_name(bucket.size): len(bucket.numbers) for bucket in division.buckets}
    have, bare, words = _captions(store)
    return Census(
        store=store.place.url,
        samples=store.samples,
        shards=manifest.shards,
        shard_rows=manifest.shard_rows,
        buckets=buckets,
        no_bucket=division.no_bucket,
        aspects=_aspects(store),
        captions=have,
        without_caption=bare,
        languages={word: words[word] for word in ("zh", "en") if word in words},
        origins={word: words[word] for word in ("original", "synthetic") if word in words},
        tags={name: _tag(store, name, values, top) for name, values in manifest.tags.items()},
        refused=manifest.refused,
        reasons=_reasons(store, top),
        bytes={name: int(shard_bytes(store, name).sum()) for name in manifest.groups[0].columns},
        written_by=manifest.written_by,
        epoch=_epoch(buckets, batch=batch, world=world),
    )


def _captions(store: Store) -> tuple[dict[str, int], int, Counter[str]]:
    """Return how many samples have each caption, how many have none, and how many have one by the words of the keys."""
    keys = store.manifest.captions
    combinations = np.bincount(store.column("captions"), minlength=1)
    which = np.arange(len(combinations))
    masks = {key: 1 << bit for bit, key in enumerate(keys)}
    words = {word: sum(masks[key] for key in keys if word in key.split("_")) for key in keys for word in key.split("_")}

    def count(mask: int) -> int:
        return int(combinations[which & mask != 0].sum())

    have = {key: count(mask) for key, mask in masks.items()}
    return have, int(combinations[0]), Counter({word: count(mask) for word, mask in words.items()})


def _aspects(store: Store) -> list[int]:
    counts = np.zeros(len(ASPECTS) - 1, np.int64)
    sizes = store.column("size")
    for start in range(0, len(sizes), _AT_ONCE):
        heights, widths = sizes[start : start + _AT_ONCE].T.astype(np.float64)
        counts += np.histogram(np.clip(widths / heights, ASPECTS[0], ASPECTS[-1]), ASPECTS)[0]
    return [int(count) for count in counts]


def _tag(store: Store, name: str, values: Sequence[str], top: int) -> Tag:
    counts = np.bincount(store.column(TAG + name), minlength=len(values) + 1)
    found = Counter(dict(zip(values, counts[1:].tolist(), strict=True)))
    shown = dict(found.most_common(top))
    return Tag(shown, found.total() - sum(shown.values()), len(found) - len(shown), int(counts[0]))


def shard_bytes(store: Store, column: str) -> NDArray[np.uint64]:
    """Return the bytes of a column's shards, [shards]; 0 where there is no object."""
    low, high, _ = store.column(OBJECT + column).T.astype(np.uint64)
    found: NDArray[np.uint64] = low + (high << np.uint64(32))
    return found


def _reasons(store: Store, top: int) -> list[Reason]:
    """Return why inputs were refused; reasons that differ only in numbers and in the name of the input are one."""
    counts, examples = Counter[str](), dict[str, str]()
    for each in refused_of(store.place, store.manifest):
        own_name = rf"(?<!\w){re.escape(each.input)}(?!\w)"
        reason = re.sub(r"\d[\d.,]*", "N", re.sub(own_name, "it", each.reason) if each.input else each.reason)
        counts[reason] += 1
        examples.setdefault(reason, each.input)
    return [Reason(reason, count, examples[reason]) for reason, count in counts.most_common(top)]


def _epoch(buckets: Mapping[str, int], *, batch: int, world: int) -> Epoch:
    plan = Plan(list(buckets.values()), batch=batch, world=world, seed=0, epoch=0)
    rows = {
        name: {key: getattr(row, key) for key in ("samples", "full_batches", "left_over", "padded")}
        for name, row in zip(buckets, plan.report(), strict=True)
    }
    return Epoch(batch, world, plan.steps, plan.full_steps, rows)
