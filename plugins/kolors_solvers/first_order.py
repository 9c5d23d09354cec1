"""Euler, Euler ancestral and DDIM: one kind of step, with more or less fresh noise.

Euler's step on the probability flow and DDIM's deterministic step are the same map of x_t = signal * x_0 + noise * eps,
and an ancestral step is DDIM's with eta 1. What sets the three apart is what they start from and which timesteps they
visit.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Generator, Tensor

from kolors_kernel.protocols import Denoise, NoiseSchedule
from kolors_solvers.levels import Level, Spacing


class FirstOrderSolver:
    """Steps that hold the predicted picture and noise fixed between two levels.

    `start` says what the walk begins with: the unit noise itself, or the noise scaled to its share in the first level.
    `eta` is the fresh noise of a step, 0 to 1.
    """

    def __init__(self, spacing: Spacing, *, start: Literal["unit", "scaled"], eta: float = 0.0) -> None:
        self.spacing = spacing
        self.start = start
        self.eta = eta

    def solve(
        self,
        denoise: Denoise,
        noise: Tensor,
        schedule: NoiseSchedule,
        *,
        generator: Generator | None = None,
        latents: Tensor | None = None,
        strength: float = 1.0,
    ) -> Tensor:
        """Carry unit Gaussian noise [B, C, h, w] to latents [B, C, h, w], in its dtype; or walk the last `strength` of
        the steps from the `latents` given, diffused with it.

        Half types are stepped in float32. Raises ValueError when eta is above 0 and there is no generator to draw from,
        when the steps do not fit on the schedule, or when the strength leaves none.
        """
        if self.eta > 0 and generator is None:
            raise ValueError(f"steps with eta {self.eta:g} add fresh noise and need a generator to draw it from")
        scaled = self.start == "scaled"
        walk, x = self.spacing.begin(noise, schedule, scaled=scaled, latents=latents, strength=strength)
        for timestep, here, there in zip(walk.timesteps, walk.levels, walk.levels[1:], strict=False):
            eps = denoise(x.to(noise.dtype), x.new_full((len(x),), timestep)).to(x.dtype)
            fresh = self.eta * _ancestral(here, there)
            kept = there.signal / here.signal
            x = kept * x + (math.sqrt(there.noise**2 - fresh**2) - kept * here.noise) * eps
            if fresh > 0 and generator is not None:
                drawn = torch.randn(x.shape, generator=generator, device=generator.device, dtype=noise.dtype)
                x = x + fresh * drawn.to(x)
        return x.to(noise.dtype)


def _ancestral(here: Level, there: Level) -> float:
    """Return how much noise in `there` may be fresh: the rest follows from `here`, as in DDPM."""
    shared = (there.noise * here.signal) / (here.noise * there.signal)
    return there.noise * math.sqrt(1 - shared**2)
