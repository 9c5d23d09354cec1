"""What the recipes that train can say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from kolors_kernel.component import BuildContext, Settings
from kolors_kernel.kinds import (
    AutoencoderConfig,
    DataSourceConfig,
    NoiseScheduleConfig,
    ObserverConfig,
    RecipeConfig,
)
from kolors_recipes import tiny
from kolors_recipes.config import Drawing, ModelRecipe, Seed, refuse_data_not_to_encode, refuse_size_of_no_latents

if TYPE_CHECKING:
    from kolors_kernel.graph import Graph
    from kolors_kernel.protocols import Job

Share = Annotated[float, Field(ge=0, lt=1)]


class Optimizer(Settings):
    """AdamW and its learning rate."""

    learning_rate: PositiveFloat = 1e-4
    """The rate after warm-up."""
    warmup: NonNegativeInt = 0
    """Steps over which the rate rises linearly from 0."""
    decay: Literal["constant", "cosine"] = "constant"
    """What the rate does after warm-up: stay, or fall along half a cosine to a hundredth where the stage ends."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """Decay of the first and second moment."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay."""
    clip: PositiveFloat = 1.0
    """Largest norm of the gradient over all trained parameters."""


class Phase(Settings):
    """What every stretch of training shares."""

    name: str
    """What it is called in logs, by another name than the other stages."""
    data: DataSourceConfig
    """Where the samples come from."""
    steps: PositiveInt
    """Optimiser steps."""
    optimizer: Optimizer = Optimizer()
    """How the weights move; its state starts fresh in every stage."""
    autocast: Literal["off", "bfloat16"] = "off"
    """Whether matrix products and convolutions run in bfloat16."""
    ema: Share = 0.999
    """Decay of the moving average of the weights, which is what is saved and drawn with; 0: none."""


class Samples(Drawing):
    """Pictures drawn in the course of training, with the averaged weights."""

    prompts: list[str] = Field(min_length=1)
    """One picture each."""
    every: PositiveInt
    """Optimiser steps between two grids."""


class Stage(Phase):
    """One stage of training (2.2)."""

    schedule: NoiseScheduleConfig
    """The noise schedule: the base one to learn concepts, the extended one at high resolution (2.2.2)."""
    trains: list[Literal["backbone", "text_encoder"]] = Field(default=["backbone"], min_length=1)
    """The parts whose weights change."""
    samples: Samples | None = None
    """Pictures to draw along the way."""


class TrainingRecipe(RecipeConfig):
    """What every recipe that trains shares."""

    stages: Sequence[Phase] = Field(min_length=1)
    """One after the other, the weights flowing from each to the next."""
    seed: Seed = 0
    """All order and noise come from it."""
    checkpoint_every: PositiveInt = 1000
    """Optimiser steps between checkpoints; one is also written when a signal stops the run."""
    keep: PositiveInt = 2
    """How many checkpoints are kept."""
    log_every: PositiveInt = 10
    """Optimiser steps between two notes of the loss."""
    observers: list[ObserverConfig] = Field(default=[{"type": "jsonl"}], validate_default=True)
    """Who watches."""

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [stage.name for stage in self.stages]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{names.count(name)} stages are called '{name}'; give each a name of its own")
        return self


class Train(TrainingRecipe, ModelRecipe):
    """Train the text-to-image model in stages; run it again with the same --out to go on where it stopped."""

    type: Literal["train"] = "train"
    stages: list[Stage] = Field(min_length=1)
    """One after the other, the weights flowing from each to the next."""

    @model_validator(mode="after")
    def _parts_can_be_trained(self) -> Self:
        for stage in self.stages:
            if "backbone" in stage.trains and not self.backbone.trains:
                kind = self.backbone.type
                raise ValueError(
                    f"stage '{stage.name}' trains the backbone, but '{kind}' has no gradients: take another"
                )
            if "text_encoder" in stage.trains and "captions" not in stage.data.ports():
                raise ValueError(
                    f"stage '{stage.name}' trains the text encoder but reads stored conditioning; read captions instead"
                )
        return self

    @model_validator(mode="after")
    def _pictures_fit(self) -> Self:
        for stage in self.stages:
            if "images" in stage.data.ports():
                refuse_data_not_to_encode(stage.data, self.autoencoder)
            if stage.samples is not None:
                refuse_size_of_no_latents((stage.samples.height, stage.samples.width), self.autoencoder.spec())
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

    @classmethod
    def tiny(cls) -> Self:
        """Return one stage of two steps on a tiny store."""
        stage = Stage(**tiny.phase(), schedule=tiny.tiny("noise_schedule", "scaled_linear"))
        return cls(**tiny.model(), stages=[stage])


class AutoencoderStage(Phase):
    """One stage of training an autoencoder."""

    kl_weight: NonNegativeFloat = 1e-6
    """Weight of the divergence of the posterior from a unit Gaussian, beside the mean absolute error."""


class TrainAutoencoder(TrainingRecipe):
    """Train an autoencoder on pictures, and set its scaling factor so that latents have unit variance."""

    type: Literal["train_autoencoder"] = "train_autoencoder"
    autoencoder: AutoencoderConfig
    """What is trained."""
    stages: list[AutoencoderStage] = Field(min_length=1)
    """One after the other."""

    @model_validator(mode="after")
    def _pictures_are_there(self) -> Self:
        for stage in self.stages:
            refuse_data_not_to_encode(stage.data, self.autoencoder)
        return self

    def graphs(self) -> Mapping[str, Graph]:
        """Return the training graph of each stage."""
        from kolors_recipes.train_autoencoder import autoencoder_graph

        return {stage.name: autoencoder_graph() for stage in self.stages}

    def build(self, ctx: BuildContext) -> Job:
        """Build the autoencoder and return the job that trains it."""
        from kolors_recipes.train_autoencoder import assemble

        return assemble(self, ctx)

    @classmethod
    def tiny(cls) -> Self:
        """Return one stage of two steps on a tiny store."""
        return cls(autoencoder=tiny.model()["autoencoder"], stages=[AutoencoderStage(**tiny.phase())])


COMPONENTS = [Train, TrainAutoencoder]
