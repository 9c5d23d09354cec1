"""The job of the text_to_image recipe."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from itertools import count
from typing import TYPE_CHECKING

import torch

from kolors_recipes.drawing import Drawer
from kolors_recipes.pictures import contact_sheet, save_png, to_picture
from kolors_recipes.progress import Progress

if TYPE_CHECKING:
    from pathlib import Path

    from kolors_kernel.component import BuildContext
    from kolors_kernel.graph import Graph
    from kolors_recipes.config import TextToImage

logger = logging.getLogger(__name__)


class TextToImageJob:
    """Draws the prompts batch by batch; every finished picture is on disk before the next batch starts."""

    def __init__(self, recipe: TextToImage, drawer: Drawer, out: Path) -> None:
        self._recipe, self._drawer, self._out = recipe, drawer, out
        self.graphs: Mapping[str, Graph] = {"draw": drawer.graph}

    @classmethod
    def assemble(cls, recipe: TextToImage, ctx: BuildContext) -> TextToImageJob:
        """Build the recipe's parts."""
        return cls(recipe, Drawer.assemble(recipe, ctx), ctx.out)

    def run(self) -> Mapping[str, float]:
        """Write 000.png ... and contact_sheet.png below `out`; return the number of pictures."""
        recipe, done = self._recipe, []
        written_down = json.dumps(recipe.model_dump(mode="json"), ensure_ascii=False)
        with Progress("drawing", len(recipe.prompts)) as progress:
            for start in range(0, len(recipe.prompts), recipe.batch):
                prompts = recipe.prompts[start : start + recipe.batch]
                seeds = [recipe.seed + start + i for i in range(len(prompts))]
                evaluations = count(1)

                def tick(evaluations: Iterator[int] = evaluations) -> None:
                    progress.advance(f"{next(evaluations)} evaluations of the backbone", by=0)

                images = self._drawer.draw(
                    prompts,
                    seeds=seeds,
                    height=recipe.height,
                    width=recipe.width,
                    tick=tick,
                )
                for seed, prompt, image in zip(seeds, prompts, images, strict=True):
                    text = {"prompt": prompt, "seed": str(seed), "recipe": written_down}
                    save_png(to_picture(image), self._out / f"{seed - recipe.seed:03d}.png", text=text)
                done.append(images)
                progress.advance(by=len(prompts))
        sheet = self._out / "contact_sheet.png"
        save_png(contact_sheet(torch.cat(done), columns=recipe.columns), sheet, text={"recipe": written_down})
        logger.info("contact sheet: %s", sheet)
        return {"pictures": len(recipe.prompts)}
