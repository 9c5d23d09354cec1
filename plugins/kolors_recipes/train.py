"""The job of the train recipe: stages over the text-to-image model (2.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kolors_kernel.graph import Graph
from kolors_recipes.drawer import Drawer
from kolors_recipes.parts import build_model
from kolors_recipes.ranks import take_own_device
from kolors_recipes.steps import TRAINING
from kolors_recipes.trainable import require_trainable
from kolors_recipes.training import RunnableStage, Training

if TYPE_CHECKING:
    from torch import Tensor

    from kolors_kernel.component import BuildContext
    from kolors_recipes.trainable import SupportsTraining
    from kolors_recipes.training_config import Samples, Stage, Train


def training_graph(given: Iterable[str]) -> Graph:
    """Return the graph of the loss from what the data give: pictures and captions, or what was computed from them."""
    return Graph(
        TRAINING,
        inputs=(*given, "size", "weight", "random"),
        outputs=("loss",),
        parts=("text_encoder", "autoencoder", "backbone", "schedule"),
    )


def assemble(recipe: Train, ctx: BuildContext) -> Training:
    """Build the parts that some stage's graph needs, and the job over them.

    Raises RecipeError for a part that is to be trained and has no weights, or cannot write them.
    """
    take_own_device(ctx.device)
    needs = {name for graph in recipe.graphs().values() for name in graph.needs}
    parts = build_model(recipe, ctx, needs, seed=recipe.seed)
    trained: dict[str, SupportsTraining] = {name: parts[name] for stage in recipe.stages for name in stage.trains}
    for name, part in trained.items():
        require_trainable(part, f"{name} '{getattr(recipe, name).type}'")
    for part in parts.values():
        if hasattr(part, "module"):  # some have no weights, as a text encoder that looks characters up
            part.module.requires_grad_(False)
    stages = [_stage(stage, recipe, parts, ctx) for stage in recipe.stages]

    def save(folder: Path) -> None:
        for name, part in trained.items():
            part.save(folder / name)

    return Training.assemble(recipe, stages, ctx, save=save)


def _stage(stage: Stage, recipe: Train, parts: Mapping[str, Any], ctx: BuildContext) -> RunnableStage:
    graph, schedule = training_graph(stage.data.ports()), stage.schedule.build(ctx)
    available = {**parts, "schedule": schedule}
    return RunnableStage(
        phase=stage,
        graph=graph,
        data=stage.data.build(ctx),
        ports={name: available[name] for name in graph.needs},
        trains={name: parts[name].module for name in stage.trains},
        draw=_draws(stage.samples, available, recipe, ctx) if stage.samples else None,
        draw_every=stage.samples.every if stage.samples else 1,
    )


def _draws(
    samples: Samples, available: Mapping[str, Any], recipe: Train, ctx: BuildContext
) -> Callable[[], tuple[Tensor, Sequence[str]]]:
    parts = {**available, "solver": samples.solver.build(ctx), "guidance": samples.guidance.build(ctx)}
    drawer = Drawer(lambda graph: nullcontext(parts), recipe, ctx)

    def draw() -> tuple[Tensor, Sequence[str]]:
        seeds = range(len(samples.prompts))
        images = drawer.draw(samples.prompts, seeds=seeds, height=samples.height, width=samples.width)
        return images, samples.prompts

    return draw
