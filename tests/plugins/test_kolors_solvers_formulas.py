"""The solvers against the formulas of their papers, written out in float64 and in the papers' own variables."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from kolors_schedules.config import ExtendedScaledLinear, NoiseScheduleConfig, RectifiedFlow, ScaledLinear
from kolors_solvers.config import DDIM, DPMpp2M, Euler, EulerAncestral
from torch import Tensor

from kolors_kernel import BuildContext
from kolors_kernel.kinds import SolverConfig

Array = np.ndarray[Any, np.dtype[np.float64]]
Network = Callable[[Array, float], Array]

SCHEDULES = [ScaledLinear(), ScaledLinear(steps=1100, beta_end=0.014), ExtendedScaledLinear(), RectifiedFlow(shift=3)]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=["base", "released", "extended", "flow"])
every_count = pytest.mark.parametrize("steps", [1, 2, 25])
every_spacing = pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", "karras"])


def network(x: Array, timestep: float) -> Array:
    mixed = 1.3 * x + 0.4 * np.roll(x, 1, -1) - 0.2 * np.roll(x, 1, 1) * math.cos(timestep / 170)
    return np.asarray(np.tanh(mixed) + 0.1 * math.sin(timestep / 90))


def unit_noise() -> Array:
    return np.random.default_rng(3).standard_normal((2, 4, 3, 5))


def draws(count: int) -> list[Array]:
    random = torch.Generator().manual_seed(7)
    return [torch.randn(2, 4, 3, 5, generator=random, dtype=torch.float64).numpy() for _ in range(count)]


def solve(config: SolverConfig, schedule: NoiseScheduleConfig) -> tuple[Array, list[float], list[float]]:
    """Return our latents, the timesteps asked for, and the sigmas of the levels, 0 at the end."""
    solver: Any = config.build(BuildContext())
    built = schedule.build(BuildContext())

    def denoise(x: Tensor, timesteps: Tensor) -> Tensor:
        return torch.from_numpy(network(x.numpy(), float(timesteps[0])))

    random = torch.Generator().manual_seed(7)
    found = solver.solve(denoise, torch.from_numpy(unit_noise()), built, generator=random)
    walk = solver.spacing.walk(built)
    return found.numpy(), walk.timesteps, [level.noise / level.signal for level in walk.levels]


def relative(found: Array, wanted: Array) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@every_schedule
@every_spacing
@every_count
def test_euler_is_the_first_order_method_in_sigma(steps: int, spacing: Any, schedule: NoiseScheduleConfig) -> None:
    # Karras et al. 2022: y = x_0 + sigma eps, dy/dsigma = eps, the network sees y / sqrt(1 + sigma^2).
    found, timesteps, sigmas = solve(Euler(steps=steps, spacing=spacing), schedule)
    y = unit_noise() * (math.hypot(sigmas[0], 1) if spacing == "leading" else sigmas[0])
    for timestep, here, there in zip(timesteps, sigmas, sigmas[1:], strict=False):
        y = y + (there - here) * network(y / math.hypot(1, here), timestep)
    assert relative(found, y) < 1e-9


@every_schedule
@every_spacing
@every_count
def test_ancestral_euler_steps_down_and_adds_noise(steps: int, spacing: Any, schedule: NoiseScheduleConfig) -> None:
    found, timesteps, sigmas = solve(EulerAncestral(steps=steps, spacing=spacing), schedule)
    y = unit_noise() * (math.hypot(sigmas[0], 1) if spacing == "leading" else sigmas[0])
    for timestep, here, there, fresh in zip(timesteps, sigmas, sigmas[1:], draws(steps), strict=False):
        up = math.sqrt(there**2 * (here**2 - there**2) / here**2)
        down = math.sqrt(there**2 - up**2)
        y = y + (down - here) * network(y / math.hypot(1, here), timestep) + up * fresh
    assert relative(found, y) < 1e-9


@every_schedule
@every_spacing
@every_count
@pytest.mark.parametrize("eta", [0.0, 0.4])
def test_ddim_is_formula_12_of_its_paper(eta: float, steps: int, spacing: Any, schedule: NoiseScheduleConfig) -> None:
    # Song et al. 2020, with alpha for alpha_bar and formula 16 for the standard deviation.
    found, timesteps, sigmas = solve(DDIM(steps=steps, spacing=spacing, eta=eta), schedule)
    alphas = [1 / (1 + sigma**2) for sigma in sigmas]
    x = unit_noise()
    for timestep, here, there, fresh in zip(timesteps, alphas, alphas[1:], draws(steps), strict=False):
        eps = network(x, timestep)
        deviation = eta * math.sqrt((1 - there) / (1 - here)) * math.sqrt(1 - here / there)
        picture = (x - math.sqrt(1 - here) * eps) / math.sqrt(here)
        x = math.sqrt(there) * picture + math.sqrt(max(0.0, 1 - there - deviation**2)) * eps + deviation * fresh
    assert relative(found, x) < 1e-9


@every_schedule
@every_spacing
@every_count
def test_dpmpp_2m_is_algorithm_2_of_its_paper(steps: int, spacing: Any, schedule: NoiseScheduleConfig) -> None:
    # Lu et al. 2022 (DPM-Solver++): lambda = log(alpha / sigma), D from the last two predictions.
    found, timesteps, sigmas = solve(DPMpp2M(steps=steps, spacing=spacing), schedule)
    x, pictures, lambdas = unit_noise(), list[Array](), [-math.log(sigma) for sigma in sigmas[:-1]]
    for i, timestep in enumerate(timesteps):
        alpha, deviation = 1 / math.hypot(1, sigmas[i]), sigmas[i] / math.hypot(1, sigmas[i])
        pictures.append((x - deviation * network(x, timestep)) / alpha)
        if i == len(timesteps) - 1:  # lambda is infinite at the end: exp(-h) is 0
            x = pictures[-1]
            break
        h = lambdas[i + 1] - lambdas[i]
        target = pictures[-1]
        if i > 0:
            r = (lambdas[i] - lambdas[i - 1]) / h
            target = (1 + 1 / (2 * r)) * pictures[-1] - 1 / (2 * r) * pictures[-2]
        next_alpha, next_deviation = 1 / math.hypot(1, sigmas[i + 1]), sigmas[i + 1] / math.hypot(1, sigmas[i + 1])
        x = next_deviation / deviation * x - next_alpha * math.expm1(-h) * target
    assert relative(found, x) < 1e-9
