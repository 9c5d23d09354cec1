"""The parts of a model: built with the same random weights each time, and lent to the graphs that need them."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch
from torch import Tensor

from kolors_kernel.errors import RecipeError
from kolors_recipes.measuring import Meter

if TYPE_CHECKING:
    from kolors_kernel.component import BuildContext
    from kolors_kernel.graph import Graph
    from kolors_kernel.protocols import NoiseSchedule, Solver
    from kolors_recipes.config import DrawingRecipe, ModelRecipe

Lend: TypeAlias = "Callable[[Graph], AbstractContextManager[Mapping[str, Any]]]"
"""What holds the parts that a graph needs for as long as it is run."""
MODEL = ("text_encoder", "autoencoder", "backbone")


class SupportsFreezing(Protocol):
    """A part that can be made faster where its weights no longer change."""

    def freeze(self) -> None:
        """Rearrange the weights for speed; they can no longer be trained."""


class SupportsReport(Protocol):
    """A part that knows which of its ways of computing it takes."""

    def report(self) -> Mapping[str, str]:
        """Say which path runs and why not a faster one, by what it is about, in words."""


def build_model(recipe: ModelRecipe, ctx: BuildContext, needs: Container[str], *, seed: int) -> dict[str, Any]:
    """Build those of the three parts that are needed, the adapters around the backbone."""
    configs = {name: getattr(recipe, name) for name in MODEL if name in needs}
    inputs = {"conditioning": recipe.text_encoder.spec(), "latents": recipe.latents_of_backbone()}
    parts = build_parts(configs, ctx, seed=seed, backbone=inputs)
    if "backbone" in parts:
        for adapter in recipe.adapters:
            parts["backbone"] = adapter.build(ctx).attach(parts["backbone"])
    return parts


def build_parts(
    configs: Mapping[str, Any], ctx: BuildContext, *, seed: int, **inputs: Mapping[str, Any]
) -> dict[str, Any]:
    """Build parts by name, each with its `inputs`; random weights that torch draws come from `seed`, part by part."""
    parts: dict[str, Any] = {}
    _require_device(ctx.device)
    with torch.random.fork_rng():
        for name, config in configs.items():
            torch.manual_seed(seed)
            parts[name] = config.build(ctx, **inputs.get(name, {}))
    return parts


def _require_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise RecipeError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error


def count_evaluations(solver: Solver, schedule: NoiseSchedule, *, strength: float | None) -> int:
    """Return how often the solver asks its denoiser, by having it solve for one pixel.

    Raises RecipeError when it refuses: steps that do not fit on the schedule, a strength that leaves none.
    """
    asked, pixel = list[Tensor](), torch.zeros(1, 1, 1, 1)

    def denoise(noisy: Tensor, timesteps: Tensor) -> Tensor:
        asked.append(timesteps)
        return noisy

    start: dict[str, Any] = {} if strength is None else {"latents": pixel, "strength": strength}
    try:
        solver.solve(denoise, pixel, schedule, generator=torch.Generator(), **start)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    return len(asked)


def give_memory_back() -> None:
    """Return to the system what dropped parts have left: the C library keeps freed pieces of up to 32 MiB for itself.

    Does no more than collect garbage where that library is not glibc.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _refuse_misfits(recipe: ModelRecipe) -> None:
    try:
        recipe.refuse_misfits()
    except ValueError as error:
        raise RecipeError(str(error)) from error


class DrawingParts:
    """The parts of a recipe that draws: all built at once, or each when a graph needs it and dropped after.

    `evaluations` is how often a picture asks the backbone, on the last `strength` of the steps from a picture where
    that is given. `meter` measures the loading, and whatever else it is told. Raises RecipeError for what does not fit,
    before anything is loaded.
    """

    def __init__(self, recipe: DrawingRecipe, ctx: BuildContext, *, strength: float | None = None) -> None:
        _require_device(ctx.device)
        _refuse_misfits(recipe)
        self._recipe, self._ctx, self.meter = recipe, ctx, Meter(ctx.device)
        self._light = {name: getattr(recipe, name).build(ctx) for name in ("schedule", "solver", "guidance")}
        self._said: dict[str, Mapping[str, str]] = {}
        self.evaluations = count_evaluations(self._light["solver"], self._light["schedule"], strength=strength)
        self._held = self._built(MODEL) if recipe.hold == "all" else {}

    def lend(self, graph: Graph) -> AbstractContextManager[Mapping[str, Any]]:
        """Hold the parts that a graph needs, by name."""
        return nullcontext(self._light | self._held) if self._held else self._for_a_while(graph)

    def reports(self) -> Mapping[str, Mapping[str, str]]:
        """Return what the parts that were built say of themselves, by name."""
        return self._said | _reports(self._held)

    @contextmanager
    def _for_a_while(self, graph: Graph) -> Iterator[Mapping[str, Any]]:
        parts = self._light | self._built(graph.needs)
        try:
            yield parts
        finally:
            self._said |= _reports(parts)
            parts.clear()  # the caller still has the mapping
            give_memory_back()

    def _built(self, needs: Container[str]) -> dict[str, Any]:
        parts: dict[str, Any] = {}
        for name in MODEL:
            if name in needs:
                with self.meter.phase(f"load {name}"):
                    parts |= build_model(self._recipe, self._ctx, (name,), seed=0)
                    if self._recipe.freeze and hasattr(parts[name], "freeze"):
                        parts[name].freeze()
        return parts


def _reports(parts: Mapping[str, Any]) -> dict[str, Mapping[str, str]]:
    return {name: dict(part.report()) for name, part in parts.items() if hasattr(part, "report")}
