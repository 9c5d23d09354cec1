"""What the recipe that writes a model in the released layout can say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, Self

from pydantic import model_validator

from kolors_kernel.component import BuildContext
from kolors_kernel.kinds import NoiseScheduleConfig
from kolors_kernel.values import LatentSpec
from kolors_recipes import tiny
from kolors_recipes.config import ModelRecipe

if TYPE_CHECKING:
    from kolors_kernel.graph import Graph
    from kolors_kernel.protocols import Job


class Export(ModelRecipe):
    """Write a model in the released layout, which diffusers' KolorsPipeline loads: all of it or nothing.

    The parts are loaded, converted and written one after the other. A backbone for inpainting is written too.
    """

    type: Literal["export"] = "export"
    schedule: NoiseScheduleConfig
    """The noise schedule the backbone was trained with."""
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float16"
    """The floating type of the weights that are written; the released ones are float16."""

    @model_validator(mode="after")
    def _has_a_released_form(self) -> Self:
        if self.adapters:
            raise ValueError("adapters have no place in the released layout: leave them out")
        if not hasattr(self.schedule, "released_form"):
            raise ValueError(
                f"schedule '{self.schedule.type}' has no released form: a scheduler_config.json names a law of betas, "
                "as scaled_linear, extended_scaled_linear and linear have it"
            )
        return self

    def latents_of_backbone(self) -> LatentSpec:
        """Return the shape of what the backbone reads: five channels more where it is one for inpainting."""
        return self.latents_of_any_backbone()

    def graphs(self) -> Mapping[str, Graph]:
        """Return a graph for each part, since one is dropped before the next is loaded."""
        from kolors_recipes.export import export_graphs

        return export_graphs()

    def build(self, ctx: BuildContext) -> Job:
        """Return the job that writes. Raises RecipeError when there is something in the folder it would write to."""
        from kolors_recipes.export import ExportJob

        return ExportJob(self, ctx)

    @classmethod
    def tiny(cls) -> Self:
        """Return a model of random weights."""
        return cls(**tiny.model(), schedule=tiny.tiny("noise_schedule", "scaled_linear"))


COMPONENTS = [Export]
