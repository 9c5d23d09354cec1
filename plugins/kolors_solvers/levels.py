"""The noise levels that a solver visits on a schedule.

A level is a pair (signal, noise) of scalars in float64: x_t = signal * x_0 + noise * eps. They come from the schedule's
`coefficients` alone. Where a schedule ends in pure noise there is no picture to divide out of x_t: epsilon is x_t
itself and says nothing. A walk that would begin there begins one timestep earlier, where the signal is small but there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kolors_kernel.protocols import NoiseSchedule

KARRAS_EXPONENT = 7  # Karras et al. 2022, section 5


@dataclass(frozen=True)
class Level:
    """Scales of picture and noise in x_t; signal above 0, noise 0 only for the clean picture."""

    signal: float
    noise: float


@dataclass(frozen=True)
class Walk:
    """The levels from noise to the clean picture [N + 1], and the timesteps of all but it [N].

    The timesteps are what the denoiser is told, and may be fractions.
    """

    timesteps: list[float]
    levels: list[Level]

    def last(self, strength: float) -> Walk:
        """Return the last `strength` of the steps, a part of a step left out, as diffusers counts them.

        Raises ValueError unless strength is in (0, 1] and leaves a step.
        """
        if not 0 < strength <= 1:
            raise ValueError(f"strength {strength:g} must be above 0 and at most 1, which is the whole walk")
        steps = len(self.timesteps)
        left = int(steps * strength)
        if left == 0:
            raise ValueError(
                f"strength {strength:g} leaves none of {steps} steps; give at least {1 / steps:.2g}, or more steps"
            )
        return Walk(self.timesteps[steps - left :], self.levels[steps - left :])


@dataclass(frozen=True)
class Spacing:
    """A number of steps and where on a schedule they fall.

    `whole` rounds the timesteps to whole ones. For Karras spacing that rounds what the denoiser is told, as it learned
    whole timesteps, while the levels stay where they are. `end_is_a_point` spaces one point more and leaves out the
    lowest, in the spacings that go by points.
    """

    steps: int
    name: Literal["leading", "trailing", "linspace", "karras"] = "leading"
    offset: int = 1
    whole: bool = False
    end_is_a_point: bool = False

    def walk(self, schedule: NoiseSchedule) -> Walk:
        """Return the levels on this schedule.

        Raises ValueError when the schedule has too few timesteps for the steps.
        """
        length = len(schedule.alpha_bar)
        signal, _ = schedule.coefficients(torch.tensor([length - 1.0]))
        top = length - 1 if signal > 0 else length - 2
        if self.name == "karras":
            return self._karras(schedule, top)
        timesteps = self._timesteps(length)
        timesteps[timesteps == length - 1] = top
        if timesteps[0] >= length or not (timesteps.diff() < 0).all():
            raise ValueError(
                f"{self.steps} steps of {self.name} spacing do not fit on a schedule of {length} timesteps: they would "
                f"go {', '.join(f'{t:g}' for t in timesteps[:3].tolist())} ... {timesteps[-1]:g}; take fewer steps"
            )
        return Walk(timesteps.tolist(), _levels(schedule, timesteps))

    def begin(
        self, noise: Tensor, schedule: NoiseSchedule, *, scaled: bool, latents: Tensor | None, strength: float
    ) -> tuple[Walk, Tensor]:
        """Return the walk and what it begins with, [B, C, h, w] in float32 at least.

        That is the unit noise, `scaled` to its share in the first level or as it is; or, on the last `strength` of the
        steps, the `latents` [B, C, h, w] diffused to the first of these. Raises ValueError for steps that do not fit
        on the schedule, a strength that leaves none, and a strength below 1 without latents.
        """
        walk = self.walk(schedule).last(strength)
        x = noise.to(torch.promote_types(noise.dtype, torch.float32))
        if latents is not None:
            return walk, walk.levels[0].signal * latents.to(x) + walk.levels[0].noise * x
        if strength < 1:
            raise ValueError(f"strength {strength:g} needs latents to begin from; without any it is 1")
        return walk, x * walk.levels[0].noise if scaled else x

    def _timesteps(self, length: int) -> Tensor:
        """Return the timesteps [N] float64, falling."""
        points = self.steps + self.end_is_a_point
        if self.name == "trailing":
            stride = length / self.steps
            return (length - torch.arange(self.steps, dtype=torch.float64) * stride).round() - 1
        if self.name == "leading":
            row = torch.arange(points, dtype=torch.float64).flip(0) * (length // points) + self.offset
        else:
            row = torch.linspace(length - 1, 0, points, dtype=torch.float64)
        return (row.round() if self.whole else row)[: self.steps]

    def _karras(self, schedule: NoiseSchedule, top: int) -> Walk:
        """Return levels with the seventh root of noise / signal evenly spaced, largest first."""
        signal, noise = schedule.coefficients(torch.arange(top + 1, dtype=torch.float64))
        table = noise / signal  # [top + 1], rising
        roots = table[[-1, 0]] ** (1 / KARRAS_EXPONENT)
        way = torch.linspace(0, 1, self.steps, dtype=torch.float64)
        sigmas = (roots[0] + way * (roots[1] - roots[0])) ** KARRAS_EXPONENT
        timesteps = _where_log(table, sigmas)
        signals = 1 / torch.hypot(torch.ones_like(sigmas), sigmas)
        levels = [Level(s, s * sigma) for s, sigma in zip(signals.tolist(), sigmas.tolist(), strict=True)]
        return Walk((timesteps.round() if self.whole else timesteps).tolist(), [*levels, Level(1.0, 0.0)])


def _levels(schedule: NoiseSchedule, timesteps: Tensor) -> list[Level]:
    """Return the levels at the timesteps and, last, the clean picture's."""
    signal, noise = schedule.coefficients(timesteps)
    pairs = zip(signal.tolist(), noise.tolist(), strict=True)
    return [*(Level(s, n) for s, n in pairs), Level(1.0, 0.0)]


def _where_log(table: Tensor, sigmas: Tensor) -> Tensor:
    """Return the places [N] of sigmas in a rising table, interpolating its logarithm."""
    logs, wanted = table.log(), sigmas.log()
    low = (torch.searchsorted(logs, wanted, right=True) - 1).clamp(0, len(table) - 2)
    part = (wanted - logs[low]) / (logs[low + 1] - logs[low])
    return low + part.clamp(0, 1)
