"""DPM-Solver++ 2M (Lu et al. 2022): a two-step method in the predicted picture."""

from __future__ import annotations

import math

from torch import Generator, Tensor

from kolors_kernel.protocols import Denoise, NoiseSchedule
from kolors_solvers.levels import Level, Spacing


class DPMpp2MSolver:
    """Second order in log(signal / noise); first order in the first step and in the last.

    The last step goes to the clean picture, infinitely far on that scale, where only the first order has a limit.
    """

    def __init__(self, spacing: Spacing) -> None:
        self.spacing = spacing

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

        Half types are stepped in float32. Nothing is drawn from the generator. Raises ValueError when the steps do not
        fit on the schedule, or when the strength leaves none.
        """
        walk, x = self.spacing.begin(noise, schedule, scaled=False, latents=latents, strength=strength)
        before: Level | None = None
        picture_before = x  # read only once there is a level before
        for timestep, here, there in zip(walk.timesteps, walk.levels, walk.levels[1:], strict=False):
            eps = denoise(x.to(noise.dtype), x.new_full((len(x),), timestep)).to(x.dtype)
            picture = (x - here.noise * eps) / here.signal
            target = picture
            if before is not None and there.noise > 0:
                lead = _stride(here, there) / (2 * _stride(before, here))
                target = picture + lead * (picture - picture_before)
            kept = there.noise / here.noise
            x = kept * x + (there.signal - kept * here.signal) * target
            before, picture_before = here, picture
        return x.to(noise.dtype)


def _stride(here: Level, there: Level) -> float:
    """Return the way between two levels in log(signal / noise)."""
    return math.log(there.signal * here.noise / (there.noise * here.signal))
