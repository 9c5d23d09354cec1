"""Drawing from a picture: its latents as a start, a mask of what is painted anew, and the rest left as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from kolors_kernel.graph import Step, step
from kolors_kernel.values import Conditioning
from kolors_recipes.drawing import decode, denoiser, steer
from kolors_recipes.steps import encode_prompts

if TYPE_CHECKING:
    from typing import TypeAlias

    from torch import Tensor

    from kolors_kernel.protocols import Autoencoder, Backbone, Denoise, Guidance, NoiseSchedule, Solver
    from kolors_kernel.values import Images, Latents, Noise, Random, Sizes

    Tick: TypeAlias = Callable[[], None]
    Mask: TypeAlias = Tensor  # [1, 1, H, W], 1 where the picture is painted anew and 0 elsewhere
    Strength: TypeAlias = float  # (0, 1], the share of the steps that is walked


@step(writes="original")
def encode_picture(picture: Images, autoencoder: Autoencoder) -> Latents:
    """Encode the picture drawn from to the mean of its posterior."""
    return autoencoder.encode(picture)


@step(writes="beside")
def encode_beside(picture: Images, mask: Mask, autoencoder: Autoencoder) -> Latents:
    """Make what an inpainting net is given: the mask on the latents' grid, and the latents of what is left.

    In the picture encoded, what is painted anew is 0, a middle grey.
    """
    left = autoencoder.encode(picture * (1 - mask))
    return torch.cat([on_grid(mask, left), left], dim=1)


@step(writes="steered")
def steer_beside(
    conditioning: Conditioning,
    size: Sizes,
    tick: Tick,
    beside: Latents,
    backbone: Backbone,
    schedule: NoiseSchedule,
    guidance: Guidance,
) -> Denoise:
    """Make the denoiser of an inpainting net under guidance."""
    return guidance(denoiser(backbone, schedule, conditioning, size, tick, beside=beside))


@step(writes="latents")
def solve_from(
    steered: Denoise,
    noise: Noise,
    original: Latents,
    strength: Strength,
    random: Random,
    schedule: NoiseSchedule,
    solver: Solver,
) -> Latents:
    """Walk the last part of the steps from the picture's latents."""
    start = original.to(noise).expand_as(noise)
    return solver.solve(steered, noise, schedule, generator=random, latents=start, strength=strength)


@step(writes="latents")
def solve_keeping(
    steered: Denoise,
    noise: Noise,
    original: Latents,
    mask: Mask,
    strength: Strength,
    random: Random,
    schedule: NoiseSchedule,
    solver: Solver,
) -> Latents:
    """Walk the last part of the steps from the picture's latents, and stay on their path where the mask is 0."""
    start = original.to(noise).expand_as(noise)
    denoise = keeping(steered, start, on_grid(mask, start), schedule)
    return solver.solve(denoise, noise, schedule, generator=random, latents=start, strength=strength)


@step(writes="images")
def decode_into(latents: Latents, picture: Images, mask: Mask, autoencoder: Autoencoder) -> Images:
    """Decode latents, and take from them only what the mask has painted anew: the other pixels are the picture's."""
    return torch.where(mask > 0.5, autoencoder.decode(latents).to(picture), picture)


def keeping(denoise: Denoise, original: Tensor, mask: Tensor, schedule: NoiseSchedule) -> Denoise:
    """Return a denoiser that, where the mask [1, 1, h, w] is 0, answers with the noise that leads to `original`.

    There x_t = signal * original + noise scale * epsilon gives epsilon. A solver that begins with the diffused
    original then carries it along as if the original, diffused with that same noise, were put in after each step.
    """

    def epsilon(noisy: Tensor, timesteps: Tensor) -> Tensor:
        signal, scale = (c.to(noisy).view(-1, 1, 1, 1) for c in schedule.coefficients(timesteps))
        return torch.where(mask > 0.5, denoise(noisy, timesteps), (noisy - signal * original) / scale)

    return epsilon


def on_grid(mask: Tensor, latents: Tensor) -> Tensor:
    """Return the mask [1, 1, H, W] on the latents' grid, [1, 1, h, w], by the nearest pixel."""
    return F.interpolate(mask, size=latents.shape[-2:]).to(latents)


IMAGE_TO_IMAGE = (encode_prompts, encode_picture, steer, solve_from, decode)


def inpainting(*, beside: bool, paste_back: bool) -> tuple[Step, ...]:
    """Return the steps of inpainting: by a net that is given the rest `beside`, or by keeping to the rest's path."""
    paint = (encode_beside, steer_beside, solve_from) if beside else (steer, solve_keeping)
    return (encode_prompts, encode_picture, *paint, decode_into if paste_back else decode)
