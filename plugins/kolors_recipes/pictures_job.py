"""The job of the recipes that draw pictures to be looked at."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kolors_kernel.errors import RecipeError
from kolors_recipes.drawer import Drawer, Request
from kolors_recipes.drawing import Source
from kolors_recipes.parts import DrawingParts
from kolors_recipes.pictures import is_kept, save_png, sheet_of_files, to_picture
from kolors_weights.writing import write_file

if TYPE_CHECKING:
    from kolors_kernel.component import BuildContext
    from kolors_kernel.graph import Graph
    from kolors_recipes.drawing_config import Pictures

logger = logging.getLogger(__name__)


class PicturesJob:
    """Draws what a recipe asks for; each picture is on disk as soon as it is decoded.

    Pictures that are there are left as they are if they were drawn by the same recipe from the same prompt and seed,
    and no file that the recipe names has changed since.
    """

    def __init__(self, recipe: Pictures, ctx: BuildContext, source: Source | None = None) -> None:
        self._recipe, self._ctx, self._source = recipe, ctx, source or Source()
        requests = requests_of(recipe)
        self._requests = {ctx.out / f"{index:03d}.png": request for index, request in enumerate(requests)}
        self._parts = DrawingParts(recipe, ctx, strength=self._source.given.get("strength"))
        self.drawer = Drawer.assemble(recipe, ctx, self._parts, self._source)
        self._written_down = json.dumps(recipe.model_dump(mode="json"), ensure_ascii=False)
        self.graphs: Mapping[str, Graph] = self.drawer.graphs

    def run(self) -> Mapping[str, float]:
        """Write 000.png ..., contact_sheet.png and report.json below `out`; return the number of pictures."""
        missing = self._missing()
        drawn = self.drawer.pictures(
            list(missing.values()),
            batch=self._recipe.batch,
            height=self._recipe.height,
            width=self._recipe.width,
            hold=self._recipe.hold,
        )
        paths = iter(missing)
        for requests, images in drawn:
            for request, image, path in zip(requests, images, paths, strict=False):
                save_png(to_picture(image), path, text=self._text(request))
        sheet = self._ctx.out / "contact_sheet.png"
        text = {"recipe": self._written_down}
        save_png(sheet_of_files(list(self._requests), columns=self._recipe.columns), sheet, text=text)
        self._report(len(missing))
        logger.info("contact sheet: %s", sheet)
        return {"pictures": len(self._requests)}

    def _missing(self) -> dict[Path, Request]:
        """Return what is still to be drawn."""
        since = newest(self._recipe.model_dump())
        kept = {path for path, request in self._requests.items() if is_kept(path, self._text(request), since=since)}
        if kept:
            logger.info(
                "%d of %d pictures are there already, by this recipe; to draw them anew, delete them",
                len(kept),
                len(self._requests),
            )
        return {path: request for path, request in self._requests.items() if path not in kept}

    def _text(self, request: Request) -> dict[str, str]:
        return {"prompt": request.prompt, "seed": str(request.seed), "recipe": self._written_down}

    def _report(self, drawn: int) -> None:
        """Write what was drawn, how, in what time and in how much memory, and say the last two."""
        meter, parts = self._parts.meter, self._parts.reports()
        report = {
            "pictures": len(self._requests),
            "drawn": drawn,
            "device": self._ctx.device,
            "dtype": self._ctx.dtype,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "hold": self._recipe.hold,
            "float32 products on a CPU": self.drawer.float32_products,
            **self._source.notes,
            "memory": meter.memory,
            "phases": meter.report(),
            "parts": parts,
        }
        text = json.dumps(report, indent=1, ensure_ascii=False)
        write_file(self._ctx.out / "report.json", lambda file: file.write_text(text, encoding="utf-8"))
        said = [f"{part}: {about}: {words}" for part, report in parts.items() for about, words in report.items()]
        logger.info("\n".join([*said, *meter.lines(), f"(seconds, {meter.memory})"]))


def requests_of(recipe: Pictures) -> list[Request]:
    """Return the pictures that a recipe asks for, in order.

    Raises RecipeError when the file of prompts cannot be read or has none, and when there are not as many seeds as
    pictures.
    """
    prompts = [recipe.prompt] if recipe.prompt is not None else recipe.prompts or _lines(recipe.prompts_file)
    prompts = [prompt for prompt in prompts for _ in range(recipe.pictures_per_prompt)]
    seeds = recipe.seeds or range(recipe.seed, recipe.seed + len(prompts))
    if len(seeds) != len(prompts):
        raise RecipeError(
            f"there are {len(prompts)} pictures to draw and {len(seeds)} seeds; give one for each, or none"
        )
    return [Request(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]


def _lines(path: Path | None) -> list[str]:
    assert path is not None, "the recipe has seen to it"
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"the prompts in {path} cannot be read: {error}") from error
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise RecipeError(f"{path} holds no prompt: give one on each line; lines that begin with # do not count")
    return prompts


def newest(settings: Any) -> int:
    """Return when a file that the settings name was last changed, or any file below a folder, in ns; 0 without any."""
    if isinstance(settings, Mapping):
        return max(map(newest, settings.values()), default=0)
    if isinstance(settings, list | tuple):
        return max(map(newest, settings), default=0)
    if not isinstance(settings, Path) or not settings.exists():
        return 0
    files = settings.rglob("*") if settings.is_dir() else [settings]
    return max((file.stat().st_mtime_ns for file in files if file.is_file()), default=0)
