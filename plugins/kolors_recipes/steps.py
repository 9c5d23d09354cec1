"""The steps that training, sampling and precomputing are made of; a graph keeps those its outputs need."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kolors_kernel.graph import step

if TYPE_CHECKING:
    from torch import Tensor

    from kolors_kernel.protocols import Autoencoder, Backbone, NoiseSchedule, TextEncoder
    from kolors_kernel.values import (
        Captions,
        Conditioning,
        Images,
        Latents,
        Loss,
        Noise,
        Prediction,
        Random,
        Sizes,
        Timesteps,
        Weights,
    )


@step(writes="latents")
def encode_images(images: Images, autoencoder: Autoencoder) -> Latents:
    """Encode pictures to the mean of their posterior, so that stored latents are what training computes."""
    with torch.no_grad():
        return autoencoder.encode(images)


@step(writes="conditioning")
def encode_prompts(captions: Captions, text_encoder: TextEncoder) -> Conditioning:
    """Encode texts (2.1.1)."""
    return text_encoder.encode(captions)


@step(writes="noise")
def draw_noise(latents: Latents, random: Random) -> Noise:
    """Draw unit noise of the latents' shape; on the CPU, so that a seed means the same on every device."""
    return torch.randn(latents.shape, generator=random, dtype=torch.float32).to(latents)


@step(writes="timesteps")
def draw_timesteps(latents: Latents, schedule: NoiseSchedule, random: Random) -> Timesteps:
    """Draw timesteps evenly over the schedule, one a sample."""
    return torch.randint(len(schedule.alpha_bar), (len(latents),), generator=random).to(latents.device)


@step(writes="noisy")
def add_noise(latents: Latents, noise: Noise, timesteps: Timesteps, schedule: NoiseSchedule) -> Latents:
    """Diffuse latents to the drawn timesteps (2.2.2)."""
    return schedule.add_noise(latents, noise, timesteps)


@step(writes="prediction")
def predict(
    noisy: Latents, timesteps: Timesteps, conditioning: Conditioning, size: Sizes, backbone: Backbone
) -> Prediction:
    """Ask the backbone."""
    return backbone.predict(noisy, timesteps, conditioning, size)


@step(writes="target")
def prediction_target(
    latents: Latents, noise: Noise, timesteps: Timesteps, schedule: NoiseSchedule, backbone: Backbone
) -> Prediction:
    """Return what the backbone should have predicted: the noise, or v = signal * noise - noise_scale * latents."""
    if backbone.predicts == "epsilon":
        return noise
    signal, scale = (c.to(latents).view(-1, 1, 1, 1) for c in schedule.coefficients(timesteps))
    return signal * noise - scale * latents


@step(writes="loss")
def squared_error(prediction: Prediction, target: Prediction, weight: Weights) -> Loss:
    """Return the mean squared error over pixels, then the weighted mean over samples."""
    return weighted_mean((prediction.float() - target.float()).square(), weight)


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Return the mean of values [B, ...] within each sample, then over samples by weight [B]: copies of 0 count not.

    It is 0 where nothing counts, as in the batch of a rank for which no sample was left.
    """
    whole = weight.sum()
    return (values.flatten(1).mean(1) * weight).sum() / whole.where(whole > 0, 1)


TRAINING = (
    encode_images,
    encode_prompts,
    draw_noise,
    draw_timesteps,
    add_noise,
    predict,
    prediction_target,
    squared_error,
)
