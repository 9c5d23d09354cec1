"""The job of the recipe inspect_store."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from PIL.Image import Image

from kolors_kernel.graph import Graph, step
from kolors_zarr.buckets.assign import Bucketing
from kolors_zarr.store.places import open_place
from kolors_zarr.store.reading import Store
from kolors_zarr.tools import census, contact_sheet, histogram
from kolors_zarr.tools.census import Census, Division
from kolors_zarr.tools.telling import lines

if TYPE_CHECKING:
    from kolors_kernel.component import BuildContext
    from kolors_zarr.tools_config import InspectStore

logger = logging.getLogger(__name__)
OwnBuckets: TypeAlias = Bucketing | None
Font: TypeAlias = Path | None
REPORT, HISTOGRAM, SHEET = "report.json", "histogram.png", "contact_sheet.png"


@step(writes="division")
def divide(store: Store, buckets: OwnBuckets) -> Division:
    """Put the samples into buckets (2.2.2)."""
    return census.divide(store, buckets)


@step(writes="report")
def count(store: Store, division: Division, batch: int, world: int, top: int) -> Census:
    """Count what is in the store, from its index alone."""
    return census.take(store, division, batch=batch, world=world, top=top)


@step(writes="histogram")
def draw_histogram(report: Census, font: Font) -> Image:
    """Draw the counts."""
    return histogram.draw_panels(report, font)


@step(writes="contact_sheet")
def draw_contact_sheet(store: Store, division: Division, pictures: int, font: Font) -> Image:
    """Read some samples of each bucket and draw them."""
    return contact_sheet.lay_out(store, division.buckets, most=pictures, font=font)


SETTINGS = ("batch", "world", "top", "pictures", "font")


def inspection() -> Graph:
    """Return what is done with a store."""
    return Graph(
        [divide, count, draw_histogram, draw_contact_sheet],
        inputs=SETTINGS,
        outputs=["report", "histogram", "contact_sheet"],
        parts=["store", "buckets"],
    )


class InspectJob:
    """Counts what is in a store and draws it."""

    def __init__(self, recipe: InspectStore, ctx: BuildContext) -> None:
        self._recipe, self._ctx = recipe, ctx
        self.graphs = recipe.graphs()

    def run(self) -> Mapping[str, float]:
        """Log and write the report, draw the histogram and the contact sheet; return the figures that matter most.

        Raises DataError when there is no such store or its index is damaged.
        """
        recipe = self._recipe
        store = Store(open_place(recipe.path))
        buckets = None if recipe.buckets is None else recipe.buckets.build(self._ctx)
        settings = {name: getattr(recipe, name) for name in SETTINGS}
        report, panels, sheet = inspection().run(store=store, buckets=buckets, **settings)
        logger.info("\n".join(lines(report)))
        self._ctx.out.mkdir(parents=True, exist_ok=True)
        (self._ctx.out / REPORT).write_text(report.to_json(), encoding="utf-8")
        panels.save(self._ctx.out / HISTOGRAM)
        sheet.save(self._ctx.out / SHEET)
        return {
            "samples": report.samples,
            "without_caption": report.without_caption,
            "refused": report.refused,
            "bytes_per_sample": sum(report.bytes.values()) / report.samples,
            "steps_per_epoch": report.epoch.steps,
        }
