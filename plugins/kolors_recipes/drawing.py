"""Drawing pictures: the steps, whole as one graph and cut into phases that need one part of the model each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from kolors_kernel.graph import Graph, Step, step
from kolors_kernel.values import Conditioning
from kolors_recipes.parts import MODEL
from kolors_recipes.steps import encode_prompts

if TYPE_CHECKING:
    from typing import TypeAlias

    from torch import Tensor

    from kolors_kernel.protocols import Autoencoder, Backbone, Denoise, Guidance, NoiseSchedule, Solver
    from kolors_kernel.values import Images, Latents, Noise, Random, Sizes

    Tick: TypeAlias = Callable[[], None]

PARTS = (*MODEL, "schedule", "solver", "guidance")


@step(writes="steered")
def steer(
    conditioning: Conditioning,
    size: Sizes,
    tick: Tick,
    backbone: Backbone,
    schedule: NoiseSchedule,
    guidance: Guidance,
) -> Denoise:
    """Make the denoiser under guidance; `tick` is called after every evaluation of the backbone."""
    return guidance(denoiser(backbone, schedule, conditioning, size, tick))


@step(writes="latents")
def solve(steered: Denoise, noise: Noise, random: Random, schedule: NoiseSchedule, solver: Solver) -> Latents:
    """Carry noise to latents."""
    return solver.solve(steered, noise, schedule, generator=random)


@step(writes="images")
def decode(latents: Latents, autoencoder: Autoencoder) -> Images:
    """Decode latents to pictures."""
    return autoencoder.decode(latents)


TEXT_TO_IMAGE = (encode_prompts, steer, solve, decode)


def denoiser(
    backbone: Backbone,
    schedule: NoiseSchedule,
    conditioning: Conditioning,
    size: Tensor,
    tick: Tick,
    *,
    beside: Tensor | None = None,
) -> Denoise:
    """Return a function that gives epsilon, whatever the backbone predicts.

    `beside` [1, G, h, w] are the channels that an inpainting net is given behind those of x_t.
    """

    def epsilon(noisy: Tensor, timesteps: Tensor) -> Tensor:
        seen = noisy if beside is None else torch.cat([noisy, beside.to(noisy).expand(len(noisy), -1, -1, -1)], dim=1)
        prediction = backbone.predict(seen, timesteps, conditioning, size)
        tick()
        if backbone.predicts == "epsilon":
            return prediction
        signal, scale = (c.to(noisy).view(-1, 1, 1, 1) for c in schedule.coefficients(timesteps))
        return signal * prediction + scale * noisy

    return epsilon


def drawing_graph() -> Graph:
    """Return the whole of text to image as one graph: captions and noise in, pictures out."""
    return Graph(
        TEXT_TO_IMAGE,
        inputs=("captions", "noise", "size", "random", "tick"),
        outputs=("images",),
        parts=PARTS,
    )


def phase_graphs(steps: Sequence[Step] = TEXT_TO_IMAGE) -> dict[str, Graph]:
    """Cut the steps into phases that need one part each: encode, encode_picture if they read one, denoise, decode."""

    def cut(outputs: Sequence[str], *inputs: str) -> Graph:
        return Graph(steps, inputs=(*inputs, "picture", "mask", "strength"), outputs=outputs, parts=PARTS)

    encoded = [port for each in steps for port in each.writes if port in ("original", "beside")]
    return {
        "encode": cut(["conditioning"], "captions"),
        **({"encode_picture": cut(encoded)} if encoded else {}),
        "denoise": cut(["latents"], "noise", "conditioning", "size", "random", "tick", *encoded),
        "decode": cut(["images"], "latents"),
    }


@dataclass(frozen=True)
class Source:
    """What pictures are drawn from: the steps, what they are given beside prompts and noise (picture, mask,
    strength), and what a report says of it."""

    steps: Sequence[Step] = TEXT_TO_IMAGE
    given: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
