"""What every recipe around the model can say, and those that score and store; see drawing_config for pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from kolors_kernel.component import BuildContext, Settings
from kolors_kernel.kinds import (
    AdapterConfig,
    AutoencoderConfig,
    BackboneConfig,
    DataSinkConfig,
    DataSourceConfig,
    GuidanceConfig,
    MetricConfig,
    NoiseScheduleConfig,
    PromptSetConfig,
    RecipeConfig,
    SolverConfig,
    TextEncoderConfig,
    WorkersConfig,
)
from kolors_kernel.values import LatentSpec
from kolors_recipes import tiny
from kolors_recipes.whole_model import names_a_place_on_the_hub, with_paths_of_the_model
from kolors_weights.places import WeightsPath

if TYPE_CHECKING:
    from kolors_kernel.graph import Graph
    from kolors_kernel.protocols import Job

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""Small enough that a picture's or a step's number fits beside it in the 64 bits of torch's generator."""


def by_type(name: str) -> object:
    """Return a field's default: the component of this type, found among the installed ones when it is needed."""
    return Field(default={"type": name}, validate_default=True)


class ModelRecipe(RecipeConfig):
    """What every recipe around the whole model shares: its three parts, the adapters, and whether they fit."""

    model: WeightsPath | None = None
    """A whole model: its folders text_encoder, vae (or autoencoder) and unet (or backbone) become the `path` of those
    of the three parts that name none, and so it is written down."""
    text_encoder: TextEncoderConfig
    """Turns prompts into conditioning (2.1.1)."""
    autoencoder: AutoencoderConfig
    """Turns latents into pictures and back."""
    backbone: BackboneConfig
    """Predicts the noise."""
    adapters: list[AdapterConfig] = Field(default=[])
    """Wrapped around the backbone, in this order."""

    @model_validator(mode="before")
    @classmethod
    def _parts_of_the_model(cls, data: Any) -> Any:
        return with_paths_of_the_model(data) if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if not any(names_a_place_on_the_hub(part) for part in (self.text_encoder, self.autoencoder, self.backbone)):
            self.refuse_misfits()
        return self

    def refuse_misfits(self) -> None:
        """Raise ValueError unless the parts fit each other; that of parts on the Hub is known when they are built."""
        misfit = self.backbone.misfit(self.text_encoder.spec(), self.latents_of_backbone())
        if misfit:
            raise ValueError(misfit)

    def latents_of_backbone(self) -> LatentSpec:
        """Return the shape of what the backbone is handed."""
        return self.autoencoder.spec()

    def latents_of_any_backbone(self) -> LatentSpec:
        """Return the same for a backbone that may be an inpainting net, which is handed a mask and a picture more."""
        plain = self.autoencoder.spec()
        more = LatentSpec(plain.channels, plain.downscale, given=1 + plain.channels)
        text = self.text_encoder.spec()
        return more if self.backbone.misfit(text, plain) and not self.backbone.misfit(text, more) else plain


def refuse_size_of_no_latents(size: tuple[int, int], latents: LatentSpec) -> None:
    """Raise ValueError unless height and width are multiples of what one of these latents stands for."""
    step = latents.downscale
    if any(side % step for side in size):
        near = " x ".join(str(max(step, round(side / step) * step)) for side in size)
        raise ValueError(f"the size {size[0]} x {size[1]} is not a multiple of {step} pixels; try {near}")


class Drawing(Settings):
    """How pictures are drawn, in a recipe of their own or in the course of a training."""

    height: int = Field(ge=8, le=16384)
    """Pixels; a multiple of the autoencoder's downscale."""
    width: int = Field(ge=8, le=16384)
    """Pixels; a multiple of the autoencoder's downscale."""
    solver: SolverConfig = by_type("euler")  # type: ignore[assignment]
    """Carries noise to latents; holds the number of steps."""
    guidance: GuidanceConfig = by_type("classifier_free")  # type: ignore[assignment]
    """Steers towards the prompt."""


class DrawingRecipe(Drawing, ModelRecipe):
    """What every recipe that draws pictures shares."""

    schedule: NoiseScheduleConfig
    """The noise schedule the backbone was trained with."""
    negative_prompt: str = ""
    """What to steer away from, where the guidance uses it."""
    seed: Seed = 0
    """Picture i begins with the noise of seed + i, whatever the batch. What a solver draws on the way, if it does,
    comes from the generator of the first picture of a batch."""
    batch: PositiveInt = 8
    """How many pictures are drawn at a time."""
    hold: Literal["all", "one"] = "all"
    """Which parts are in memory: `all`, each batch being finished before the next; or `one`, all prompts being encoded,
    then all pictures denoised, then all decoded, each part being loaded when its turn comes and dropped after."""
    freeze: bool = True
    """Whether parts that can be are rearranged for speed once they are loaded."""

    def refuse_misfits(self) -> None:
        """Raise ValueError unless the parts fit each other and the size."""
        super().refuse_misfits()
        refuse_size_of_no_latents((self.height, self.width), self.autoencoder.spec())

    def graphs(self) -> Mapping[str, Graph]:
        """Return the sampling graph, cut into phases."""
        from kolors_recipes.drawing import phase_graphs

        return phase_graphs()


class Evaluate(DrawingRecipe):
    """Draw the pictures of a prompt set and score them: report.json holds what the metric says (3)."""

    type: Literal["evaluate"] = "evaluate"
    prompts: PromptSetConfig
    """The cases to draw."""
    metric: MetricConfig
    """What scores them."""

    def build(self, ctx: BuildContext) -> Job:
        """Build the model and return the job that draws and scores."""
        from kolors_recipes.evaluate import EvaluateJob

        return EvaluateJob.assemble(self, ctx)

    @classmethod
    def tiny(cls) -> Self:
        """Return a few emoji by random weights."""
        prompts, metric = tiny.tiny("prompt_set", "emoji_prompts"), tiny.tiny("metric", "emoji_hits")
        return cls(**tiny.drawing(), prompts=prompts, metric=metric)


def refuse_data_not_to_encode(data: DataSourceConfig, autoencoder: AutoencoderConfig) -> None:
    """Raise ValueError for a source that has no pictures in its batches, or has them in a size of no latents."""
    if "images" not in data.ports():
        raise ValueError(f"the data give {' and '.join(sorted(data.ports()))}, but the autoencoder reads images")
    for size in data.picture_sizes():
        refuse_size_of_no_latents(size, autoencoder.spec())


class Precompute(RecipeConfig):
    """Store latents, text conditioning or both, by running that much of the training graph once."""

    type: Literal["precompute"] = "precompute"
    text_encoder: TextEncoderConfig | None = None
    """Needed for conditioning only."""
    autoencoder: AutoencoderConfig | None = None
    """Needed for latents only."""
    outputs: list[Literal["latents", "conditioning"]] = Field(default=["latents", "conditioning"])
    """What is stored beside the captions: latents, and conditioning if training does not change the text encoder."""
    data: DataSourceConfig
    """Pictures with captions."""
    sink: DataSinkConfig
    """Where the results go; a run that was stopped goes on with the parts that are missing there."""
    keep: Literal["float16", "float32"] = "float16"
    """How latents and conditioning are stored."""
    workers: WorkersConfig = by_type("pool")  # type: ignore[assignment]
    """Who encodes: this process, several, or other machines, a part of the set at a time."""

    @model_validator(mode="after")
    def _parts_are_there(self) -> Self:
        if "latents" not in self.outputs:
            raise ValueError("outputs must name latents: a store holds pictures in one form or the other")
        for output, part in (("latents", "autoencoder"), ("conditioning", "text_encoder")):
            if output in self.outputs and getattr(self, part) is None:
                raise ValueError(f"storing {output} needs the setting {part}")
        if self.autoencoder is not None:
            refuse_data_not_to_encode(self.data, self.autoencoder)
        return self

    def graphs(self) -> Mapping[str, Graph]:
        """Return the part of the training graph that is stored."""
        from kolors_recipes.precompute import stored_graph

        return {"store": stored_graph(self.outputs)}

    def build(self, ctx: BuildContext) -> Job:
        """Build the parts that are needed and return the job that stores what they make."""
        from kolors_recipes.precompute import PrecomputeJob

        return PrecomputeJob(self, ctx)

    @classmethod
    def tiny(cls) -> Self:
        """Return the encoding of a tiny store."""
        parts = {name: part for name, part in tiny.model().items() if name != "backbone"}
        sink = {"type": "zarr"}  # its own tiny one is a place that can be written once
        return cls.model_validate({**parts, "data": tiny.tiny("data_source", "zarr"), "sink": sink})


COMPONENTS = [Evaluate, Precompute]
