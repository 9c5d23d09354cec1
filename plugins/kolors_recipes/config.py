"""What the recipes can say; the jobs they build are in the modules of the same names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

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
    ObserverConfig,
    PromptSetConfig,
    RecipeConfig,
    SolverConfig,
    TextEncoderConfig,
)

if TYPE_CHECKING:
    from kolors_kernel.graph import Graph
    from kolors_kernel.protocols import Job

Pixels = Field(ge=8, le=16384)


def by_type(name: str) -> object:
    """Return a field's default: the component of this type, found among the installed ones when it is needed."""
    return Field(default={"type": name}, validate_default=True)


class ModelRecipe(RecipeConfig):
    """What every recipe around the whole model shares: its three parts, the adapters, and whether they fit."""

    text_encoder: TextEncoderConfig
    """Turns prompts into conditioning (2.1.1)."""
    autoencoder: AutoencoderConfig
    """Turns latents into pictures and back."""
    backbone: BackboneConfig
    """Predicts the noise."""
    adapters: list[AdapterConfig] = Field(default=[])
    """Wrapped around the backbone, in this order."""

    @model_validator(mode="after")
    def _widths_fit(self) -> Self:
        misfit = self.backbone.misfit(self.text_encoder.spec(), self.autoencoder.spec())
        if misfit:
            raise ValueError(misfit)
        return self


class DrawingRecipe(ModelRecipe):
    """What every recipe that draws pictures shares."""

    schedule: NoiseScheduleConfig
    """The noise schedule the backbone was trained with."""
    solver: SolverConfig = by_type("euler")  # type: ignore[assignment]
    """Carries noise to latents; holds the number of steps."""
    guidance: GuidanceConfig = by_type("classifier_free")  # type: ignore[assignment]
    """Steers towards the prompt."""
    negative_prompt: str = ""
    """What to steer away from, where the guidance uses it."""
    height: int = Pixels
    """Pixels; a multiple of the autoencoder's downscale."""
    width: int = Pixels
    """Pixels; a multiple of the autoencoder's downscale."""
    seed: NonNegativeInt = 0
    """Picture i is drawn from seed + i, whatever the batch."""
    batch: PositiveInt = 8
    """How many pictures are drawn at a time."""

    @model_validator(mode="after")
    def _size_fits(self) -> Self:
        step = self.autoencoder.spec().downscale
        if self.height % step or self.width % step:
            near = [max(step, round(side / step) * step) for side in (self.height, self.width)]
            raise ValueError(
                f"the size {self.height} x {self.width} is not a multiple of {step} pixels; try {near[0]} x {near[1]}"
            )
        return self

    def graphs(self) -> Mapping[str, Graph]:
        """Return the sampling graph."""
        from kolors_recipes.drawing import drawing_graph

        return {"draw": drawing_graph()}


class TextToImage(DrawingRecipe):
    """Draw pictures from prompts: a PNG each and a contact sheet."""

    type: Literal["text_to_image"] = "text_to_image"
    prompts: list[str] = Field(min_length=1)
    """One picture each; any language the text encoder reads."""
    columns: PositiveInt = 4
    """Pictures in a row of the contact sheet."""

    def build(self, ctx: BuildContext) -> Job:
        """Build the model and return the job that draws."""
        from kolors_recipes.text_to_image import TextToImageJob

        return TextToImageJob.assemble(self, ctx)

    @classmethod
    def tiny(cls) -> Self:
        """Return one 16-pixel picture by random weights in two steps."""
        return cls.model_validate({**_tiny_model(), **_TINY_DRAWING, "type": "text_to_image", "prompts": ["一只猫"]})


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


class Optimizer(Settings):
    """AdamW and its learning rate."""

    learning_rate: PositiveFloat = 1e-4
    """The rate after warm-up."""
    warmup: NonNegativeInt = 0
    """Steps over which the rate rises linearly from 0."""
    decay: Literal["constant", "cosine"] = "constant"
    """What the rate does after warm-up: stay, or fall to a hundredth at the stage's last step."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the first and second moment."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay."""
    clip: PositiveFloat = 1.0
    """Largest norm of the gradient over all trained parameters."""


class Phase(Settings):
    """What every stretch of training shares."""

    name: str
    """What it is called in logs and checkpoints."""
    data: DataSourceConfig
    """Where the samples come from."""
    steps: PositiveInt
    """Optimiser steps."""
    optimizer: Optimizer = Optimizer()
    """How the weights move; its state starts fresh in every stage."""
    autocast: Literal["off", "bfloat16"] = "off"
    """Whether matrix products and convolutions run in bfloat16."""
    ema: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the moving average of the weights, which is what is saved and drawn with; 0: none."""


class Samples(Settings):
    """Pictures drawn in the course of training, with the averaged weights."""

    prompts: list[str] = Field(min_length=1)
    """One picture each."""
    every: PositiveInt
    """Optimiser steps between two grids."""
    height: int = Pixels
    """Pixels."""
    width: int = Pixels
    """Pixels."""
    solver: SolverConfig = by_type("euler")  # type: ignore[assignment]
    """Carries noise to latents."""
    guidance: GuidanceConfig = by_type("classifier_free")  # type: ignore[assignment]
    """Steers towards the prompt."""


class Stage(Phase):
    """One stage of training (2.2)."""

    schedule: NoiseScheduleConfig
    """The noise schedule: the base one to learn concepts, the extended one at high resolution (2.2.2)."""
    trains: list[Literal["backbone", "text_encoder"]] = Field(default=["backbone"], min_length=1)
    """The parts whose weights change."""
    samples: Samples | None = None
    """Pictures to draw along the way."""


class TrainingSettings(Settings):
    """What every recipe that trains shares."""

    seed: NonNegativeInt = 0
    """All order and noise come from it."""
    checkpoint_every: PositiveInt = 1000
    """Optimiser steps between checkpoints; one is also written when a signal stops the run."""
    keep: PositiveInt = 2
    """How many checkpoints are kept."""
    log_every: PositiveInt = 10
    """Optimiser steps between two notes of the loss."""
    observers: list[ObserverConfig] = Field(default=[{"type": "jsonl"}], validate_default=True)
    """Who watches."""


class Train(TrainingSettings, ModelRecipe):
    """Train the text-to-image model in stages; run it again with the same --out to go on where it stopped."""

    type: Literal["train"] = "train"
    stages: list[Stage] = Field(min_length=1)
    """One after the other, the weights flowing from each to the next."""

    @model_validator(mode="after")
    def _text_is_there_to_train(self) -> Self:
        for stage in self.stages:
            if "text_encoder" in stage.trains and "captions" not in stage.data.ports():
                raise ValueError(
                    f"stage '{stage.name}' trains the text encoder but reads stored conditioning; read captions instead"
                )
        return self

    def graphs(self) -> Mapping[str, Graph]:
        """Return the training graph of each stage, and the sampling graph if one draws."""
        from kolors_recipes.drawing import drawing_graph
        from kolors_recipes.train import training_graph

        drawing = {"samples": drawing_graph()} if any(stage.samples for stage in self.stages) else {}
        return {stage.name: training_graph(stage.data.ports()) for stage in self.stages} | drawing

    def build(self, ctx: BuildContext) -> Job:
        """Build the parts the graphs need and return the job that trains them."""
        from kolors_recipes.train import assemble

        return assemble(self, ctx)


class AutoencoderStage(Phase):
    """One stage of training an autoencoder."""

    kl_weight: NonNegativeFloat = 1e-6
    """Weight of the divergence of the posterior from a unit Gaussian, beside the mean absolute error."""


class TrainAutoencoder(TrainingSettings, RecipeConfig):
    """Train an autoencoder on pictures, and set its scaling factor so that latents have unit variance."""

    type: Literal["train_autoencoder"] = "train_autoencoder"
    autoencoder: AutoencoderConfig
    """What is trained."""
    stages: list[AutoencoderStage] = Field(min_length=1)
    """One after the other."""

    def graphs(self) -> Mapping[str, Graph]:
        """Return the training graph of each stage."""
        from kolors_recipes.train_autoencoder import autoencoder_graph

        return {stage.name: autoencoder_graph() for stage in self.stages}

    def build(self, ctx: BuildContext) -> Job:
        """Build the autoencoder and return the job that trains it."""
        from kolors_recipes.train_autoencoder import assemble

        return assemble(self, ctx)


class Precompute(RecipeConfig):
    """Store latents, text conditioning or both, by running that much of the training graph once."""

    type: Literal["precompute"] = "precompute"
    text_encoder: TextEncoderConfig | None = None
    """Needed for conditioning only."""
    autoencoder: AutoencoderConfig | None = None
    """Needed for latents only."""
    outputs: list[Literal["latents", "conditioning"]] = Field(default=["latents", "conditioning"], min_length=1)
    """What is stored beside the captions."""
    data: DataSourceConfig
    """Pictures with captions."""
    sink: DataSinkConfig
    """Where the results go."""

    @model_validator(mode="after")
    def _parts_are_there(self) -> Self:
        for output, part in (("latents", "autoencoder"), ("conditioning", "text_encoder")):
            if output in self.outputs and getattr(self, part) is None:
                raise ValueError(f"storing {output} needs the setting {part}")
        return self

    def graphs(self) -> Mapping[str, Graph]:
        """Return the part of the training graph that is stored."""
        from kolors_recipes.precompute import stored_graph

        return {"store": stored_graph(self.outputs)}

    def build(self, ctx: BuildContext) -> Job:
        """Build the parts that are needed and return the job that stores what they make."""
        from kolors_recipes.precompute import PrecomputeJob

        return PrecomputeJob.assemble(self, ctx)


def _tiny_model() -> dict[str, object]:
    from kolors_kernel import discover

    names = {"text_encoder": "chatglm3", "autoencoder": "sdxl_vae", "backbone": "sdxl_unet"}
    return {kind: discover().find(kind, name).tiny() for kind, name in names.items()}


_TINY_DRAWING = {
    "schedule": {"type": "scaled_linear"},
    "solver": {"type": "euler", "steps": 2},
    "height": 16,
    "width": 16,
}

COMPONENTS = [TextToImage, Evaluate, Train, TrainAutoencoder, Precompute]
