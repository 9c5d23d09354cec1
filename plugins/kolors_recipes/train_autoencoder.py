"""The job of the train_autoencoder recipe."""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from kolors_kernel.graph import Graph, step
from kolors_recipes.batches import to_images
from kolors_recipes.parts import build_parts
from kolors_recipes.ranks import take_own_device
from kolors_recipes.steps import weighted_mean
from kolors_recipes.trainable import require_trainable
from kolors_recipes.training import RunnableStage, Training

if TYPE_CHECKING:
    from kolors_kernel.component import BuildContext
    from kolors_kernel.protocols import DataSource
    from kolors_kernel.values import Images, Latents, Loss, Random, Weights
    from kolors_recipes.trainable import SupportsPosterior
    from kolors_recipes.training_config import TrainAutoencoder

logger = logging.getLogger(__name__)

MEASURED = 32
"""How many batches the scaling factor is measured on."""


@step(writes=("latents", "divergence"))
def draw_posterior(
    images: Images, autoencoder: SupportsPosterior, random: Random, weight: Weights
) -> tuple[Latents, Loss]:
    """Draw unscaled latents; return the divergence of their posterior from a unit Gaussian too.

    It is a mean over the values of a latent and the weighted mean over samples.
    """
    mean, log_variance = autoencoder.posterior(images)
    noise = torch.randn(mean.shape, generator=random).to(mean)
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
    return mean + (0.5 * log_variance).exp() * noise, weighted_mean(divergence, weight)


@step(writes="reconstruction")
def reconstruct(latents: Latents, autoencoder: SupportsPosterior) -> Images:
    """Decode them again."""
    return autoencoder.reconstruct(latents)


@step(writes="loss")
def reconstruction_error(
    images: Images, reconstruction: Images, divergence: Loss, kl_weight: float, weight: Weights
) -> Loss:
    """Return the weighted mean absolute error over pixels and samples, plus the weighted divergence."""
    return weighted_mean((reconstruction.float() - images).abs(), weight) + kl_weight * divergence


def autoencoder_graph() -> Graph:
    """Return the graph of the autoencoder's loss."""
    return Graph(
        (draw_posterior, reconstruct, reconstruction_error),
        inputs=("images", "weight", "random", "kl_weight"),
        outputs=("loss",),
        parts=("autoencoder",),
    )


def assemble(recipe: TrainAutoencoder, ctx: BuildContext) -> Training:
    """Build the autoencoder and the job that trains it. Raises RecipeError for one that cannot be trained."""
    take_own_device(ctx.device)
    parts = build_parts({"autoencoder": recipe.autoencoder}, ctx, seed=recipe.seed)
    autoencoder: SupportsPosterior = parts["autoencoder"]
    able = ("module", "save", "posterior", "reconstruct", "scaling_factor")
    require_trainable(autoencoder, f"autoencoder '{recipe.autoencoder.type}'", able=able)
    sources = [stage.data.build(ctx) for stage in recipe.stages]
    stages = [
        RunnableStage(
            phase=stage,
            graph=autoencoder_graph(),
            data=source,
            ports={"autoencoder": autoencoder, "kl_weight": stage.kl_weight},
            trains={"autoencoder": autoencoder.module},
        )
        for stage, source in zip(recipe.stages, sources, strict=True)
    ]

    def save(folder: Path) -> None:
        autoencoder.scaling_factor = _scaling_factor(autoencoder, sources[-1], recipe.seed)
        autoencoder.save(folder / "autoencoder")

    return Training.assemble(recipe, stages, ctx, save=save)


@torch.no_grad()
def _scaling_factor(autoencoder: SupportsPosterior, source: DataSource, seed: int) -> float:
    """Return 1 / the standard deviation of the latents' means, so that scaled latents have unit variance."""
    device = next(autoencoder.module.parameters()).device
    batches = islice(source.batches(seed=seed, epoch=0), MEASURED)
    images = (to_images(batch.images, device) for batch in batches if batch.images is not None)
    means = [autoencoder.posterior(each)[0].flatten() for each in images]
    factor = 1 / float(torch.cat(means).double().std())
    logger.info("scaling factor: %.5f", factor)
    return factor
