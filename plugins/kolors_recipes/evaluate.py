"""The job of the evaluate recipe: draw a prompt set, score it, write report.json (3)."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from kolors_recipes.drawer import Drawer, Request
from kolors_recipes.parts import DrawingParts
from kolors_recipes.pictures import contact_sheet, save_png
from kolors_recipes.progress import Progress
from kolors_weights.writing import write_file

if TYPE_CHECKING:
    from pathlib import Path

    from kolors_kernel.component import BuildContext
    from kolors_kernel.graph import Graph
    from kolors_kernel.protocols import Metric, PromptSet
    from kolors_recipes.config import Evaluate

logger = logging.getLogger(__name__)


class EvaluateJob:
    """Draws every case once, saves a contact sheet a batch, and writes what the metric makes of them."""

    def __init__(self, recipe: Evaluate, drawer: Drawer, prompts: PromptSet, metric: Metric, out: Path) -> None:
        self._recipe, self._drawer, self._prompts, self._metric, self._out = recipe, drawer, prompts, metric, out
        self.graphs: Mapping[str, Graph] = drawer.graphs

    @classmethod
    def assemble(cls, recipe: Evaluate, ctx: BuildContext) -> EvaluateJob:
        """Build the recipe's parts."""
        drawer = Drawer.assemble(recipe, ctx, DrawingParts(recipe, ctx))
        return cls(recipe, drawer, recipe.prompts.build(ctx), recipe.metric.build(ctx), ctx.out)

    def run(self) -> Mapping[str, float]:
        """Write report.json below `out`; return the number of pictures."""
        recipe, cases, start = self._recipe, self._prompts.cases(), 0
        requests = [Request(case.prompt, recipe.seed + index) for index, case in enumerate(cases)]
        drawn = self._drawer.pictures(
            requests, batch=recipe.batch, height=recipe.height, width=recipe.width, hold=recipe.hold
        )
        with Progress("drawing", len(cases)) as progress:
            for batch, images in drawn:
                self._metric.update(images, cases[start : start + len(batch)])
                prompts = json.dumps([request.prompt for request in batch], ensure_ascii=False)
                sheet = self._out / "pictures" / f"{start:05d}.png"
                save_png(contact_sheet(images, columns=8), sheet, text={"prompts": prompts})
                progress.advance(by=len(batch))
                start += len(batch)
        report = self._out / "report.json"
        text = json.dumps(self._metric.compute(), indent=1, ensure_ascii=False)
        write_file(report, lambda file: file.write_text(text, encoding="utf-8"))
        logger.info("report: %s", report)
        return {"pictures": len(cases)}
