"""From what a recipe says to a source."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from kolors_kernel.errors import DataError
from kolors_zarr.buckets.assign import Bucketing
from kolors_zarr.loading.filling import Filler
from kolors_zarr.loading.report import Report
from kolors_zarr.loading.selection import select
from kolors_zarr.loading.source import ZarrDataSource
from kolors_zarr.loading.weights import Weights
from kolors_zarr.store.manifest import Manifest
from kolors_zarr.store.places import open_place
from kolors_zarr.store.reading import Store

if TYPE_CHECKING:
    from kolors_kernel.component import BuildContext
    from kolors_zarr.config import ZarrSource

logger = logging.getLogger(__name__)
QUARANTINE = "quarantine.jsonl"


def build_source(config: ZarrSource, ctx: BuildContext) -> ZarrDataSource:
    """Open a store, select its samples, and log what was found.

    Raises DataError when the store has not what is asked for, or no sample is left, or one that must not be there.
    """
    store = Store(open_place(config.path))
    held = store.holds | {"captions"}  # the empty one, if there is no other
    for wanted in (config.pictures, config.text):
        if wanted not in held:
            raise DataError(f"{config.path} has no {wanted}; it has {', '.join(sorted(store.holds))}")
    filler = Filler(
        store,
        pictures=config.pictures,
        text=config.text,
        mix=config.captions.build(ctx),
        crop=config.crop,
        damaged=config.damaged,
    )
    bucketing = config.buckets.build(ctx)
    if filler.column == "pixels":
        _require_sizes(store.manifest, bucketing, config.path)
    report = Report(config.path, store.samples)
    buckets = select(
        store,
        bucketing if filler.column == "image" else None,
        filters=[(each.type, each.build(ctx)) for each in config.filters],
        requires=[(each.type, each.build(ctx)) for each in config.requires],
        report=report,
    )
    for line in report.lines():
        logger.info(line)
    return ZarrDataSource(
        filler,
        buckets,
        batch=config.batch,
        remainder=config.remainder,
        weights=Weights(store, buckets, balance=config.balance),
        threads=config.threads,
        processes=config.processes,
        pinned=ctx.device.startswith("cuda"),
        quarantine=ctx.out / QUARANTINE,
        report=report,
    )


def _require_sizes(manifest: Manifest, bucketing: Bucketing, where: str) -> None:
    names = {f"{height}x{width}" for height, width in bucketing.sizes}
    others = [group.name for group in manifest.groups if group.name not in names]
    if others:
        raise DataError(
            f"{where} holds pixels of {', '.join(others)}, which are none of the buckets; set buckets to those it was "
            "written with"
        )
