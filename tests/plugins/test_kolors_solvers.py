"""The solvers against diffusers' schedulers, which are other people's code for the same methods.

`fake` stands for a network: nonlinear in x, not separable by pixel, and told the timestep. Both sides get the same
noise, and where a method draws, the same draws. The peers multiply their tables in float32, keep their sigmas in
float32 and, all but DDIM, step in float32 whatever they are given: in float64 that much difference remains. Held
against formulas in float64 there is none: test_kolors_solvers_formulas.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
)
from kolors_schedules.config import ScaledLinear
from kolors_solvers.config import DDIM, DPMpp2M, Euler, EulerAncestral
from torch import Tensor

from kolors_kernel import BuildContext
from kolors_kernel.kinds import SolverConfig

# The peers hand torch tensors to numpy in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

SCHEDULES = {1000: ScaledLinear(), 1100: ScaledLinear(steps=1100, beta_end=0.014)}
BETA_END = {1000: 0.012, 1100: 0.014}
FLOAT32_TABLES = 5e-6
"""What float32 in the peers' tables and steps may cost; measured: 1.5e-6 at most."""


def fake(x: Tensor, timesteps: Tensor) -> Tensor:
    t = timesteps.view(-1, 1, 1, 1).to(x.dtype)
    mixed = 1.3 * x + 0.4 * x.roll(1, -1) - 0.2 * x.roll(1, 1) * torch.cos(t / 170)
    return torch.tanh(mixed) + 0.1 * torch.sin(t / 90)


def peer_of(cls: type[Any], length: int, **settings: Any) -> Any:
    released = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "steps_offset": 1}
    return cls(num_train_timesteps=length, beta_end=BETA_END[length], **released, **settings)


def peer_solve(peer: Any, steps: int, noise: Tensor, **step_settings: Any) -> tuple[Tensor, list[float]]:
    """Sample as the peers' pipelines do; return the latents and the timesteps asked for."""
    peer.set_timesteps(steps)
    x = noise * peer.init_noise_sigma
    for timestep in peer.timesteps:
        eps = fake(peer.scale_model_input(x, timestep), timestep.expand(len(x)))
        x = peer.step(eps, timestep, x, **step_settings).prev_sample
    return x, peer.timesteps.tolist()


def our_solve(config: SolverConfig, length: int, noise: Tensor) -> tuple[Tensor, list[float]]:
    asked: list[float] = []

    def denoise(x: Tensor, timesteps: Tensor) -> Tensor:
        asked.append(float(timesteps[0]))
        return fake(x, timesteps)

    schedule = SCHEDULES[length].build(BuildContext())
    return config.build(BuildContext()).solve(denoise, noise, schedule, generator=draws()), asked


def draws() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def unit_noise(dtype: torch.dtype) -> Tensor:
    return torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(3), dtype=dtype)


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


every_length = pytest.mark.parametrize("length", [1000, 1100])
every_count = pytest.mark.parametrize("steps", [5, 10, 25])
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
every_spacing = pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])


def agree(config: SolverConfig, peer: Any, steps: int, length: int, dtype: torch.dtype, **step_settings: Any) -> None:
    noise = unit_noise(dtype)
    wanted, peer_asked = peer_solve(peer, steps, noise, **step_settings)
    found, asked = our_solve(config, length, noise)
    # Fractional timesteps are float32 in the peers, from float32 sigmas.
    assert asked == pytest.approx(peer_asked, abs=2e-3)
    assert found.dtype == dtype
    assert relative(found, wanted) < FLOAT32_TABLES


@every_length
@every_count
@every_dtype
@every_spacing
def test_euler_agrees_with_diffusers(spacing: Any, dtype: torch.dtype, steps: int, length: int) -> None:
    peer = peer_of(EulerDiscreteScheduler, length, timestep_spacing=spacing)
    agree(Euler(steps=steps, spacing=spacing), peer, steps, length, dtype)


@every_length
@every_count
@every_dtype
def test_euler_with_karras_sigmas_agrees_with_diffusers(dtype: torch.dtype, steps: int, length: int) -> None:
    # The peer takes the ends of the Karras row from its own spacing; linspace's are the schedule's ends.
    peer = peer_of(EulerDiscreteScheduler, length, timestep_spacing="linspace", use_karras_sigmas=True)
    agree(Euler(steps=steps, spacing="karras"), peer, steps, length, dtype)


@every_length
@every_count
@every_dtype
@every_spacing
def test_ancestral_euler_agrees_with_diffusers(spacing: Any, dtype: torch.dtype, steps: int, length: int) -> None:
    peer = peer_of(EulerAncestralDiscreteScheduler, length, timestep_spacing=spacing)
    config = EulerAncestral(steps=steps, spacing=spacing)
    agree(config, peer, steps, length, dtype, generator=draws())


# Linspace is left out: there the peer moves by a fixed stride, and not to the timestep it visits next.
@every_length
@every_count
@every_dtype
@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim_agrees_with_diffusers(spacing: Any, eta: float, dtype: torch.dtype, steps: int, length: int) -> None:
    peer = peer_of(DDIMScheduler, length, timestep_spacing=spacing, clip_sample=False)
    config = DDIM(steps=steps, spacing=spacing, eta=eta)
    agree(config, peer, steps, length, dtype, eta=eta, generator=draws())


@every_length
@every_count
@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim_agrees_to_the_last_digits_with_a_peer_given_a_table_in_float64(
    spacing: Any, eta: float, steps: int, length: int
) -> None:
    peer = peer_of(DDIMScheduler, length, timestep_spacing=spacing, clip_sample=False)
    roots = torch.linspace(0.00085**0.5, BETA_END[length] ** 0.5, length, dtype=torch.float64)
    peer.alphas_cumprod = (1 - roots**2).cumprod(0)
    noise = unit_noise(torch.float64)
    wanted, _ = peer_solve(peer, steps, noise, eta=eta, generator=draws())
    found, _ = our_solve(DDIM(steps=steps, spacing=spacing, eta=eta), length, noise)
    assert relative(found, wanted) < 1e-12


@every_length
@every_count
@every_dtype
@every_spacing
def test_dpmpp_2m_agrees_with_diffusers(spacing: Any, dtype: torch.dtype, steps: int, length: int) -> None:
    peer = peer_of(DPMSolverMultistepScheduler, length, timestep_spacing=spacing)
    agree(DPMpp2M(steps=steps, spacing=spacing), peer, steps, length, dtype)


@every_length
@every_count
@every_dtype
def test_dpmpp_2m_with_karras_sigmas_agrees_with_diffusers(dtype: torch.dtype, steps: int, length: int) -> None:
    peer = peer_of(DPMSolverMultistepScheduler, length, timestep_spacing="leading", use_karras_sigmas=True)
    agree(DPMpp2M(steps=steps, spacing="karras"), peer, steps, length, dtype)


def picture_latents(dtype: torch.dtype) -> Tensor:
    return torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(4), dtype=dtype) * 0.8


def peer_solve_from(peer: Any, steps: int, strength: float, noise: Tensor, **step_settings: Any) -> Tensor:
    """Sample from `picture_latents` as the peers' image-to-image pipelines do."""
    peer.set_timesteps(steps)
    start = max(steps - min(int(steps * strength), steps), 0)
    timesteps = peer.timesteps[start:]
    if hasattr(peer, "set_begin_index"):
        peer.set_begin_index(start)
    x = peer.add_noise(picture_latents(noise.dtype), noise, timesteps[:1].repeat(len(noise)))
    for timestep in timesteps:
        eps = fake(peer.scale_model_input(x, timestep), timestep.expand(len(x)))
        x = peer.step(eps, timestep, x, **step_settings).prev_sample
    return x


# 0.58 * 50 is 28.999999999999996: a part of a step is left out, here and there.
@pytest.mark.parametrize(("steps", "strength"), [(10, 0.3), (50, 0.58), (25, 0.999), (7, 1.0), (25, 0.05)])
@pytest.mark.parametrize(
    ("config", "peer", "settings"),
    [
        (Euler(), EulerDiscreteScheduler, {"timestep_spacing": "leading"}),
        (Euler(spacing="trailing"), EulerDiscreteScheduler, {"timestep_spacing": "trailing"}),
        (Euler(spacing="karras"), EulerDiscreteScheduler, {"timestep_spacing": "linspace", "use_karras_sigmas": True}),
        (EulerAncestral(), EulerAncestralDiscreteScheduler, {"timestep_spacing": "leading"}),
        (DDIM(), DDIMScheduler, {"timestep_spacing": "leading", "clip_sample": False}),
        (DPMpp2M(spacing="leading"), DPMSolverMultistepScheduler, {"timestep_spacing": "leading"}),
        (DPMpp2M(spacing="trailing"), DPMSolverMultistepScheduler, {"timestep_spacing": "trailing"}),
        (DPMpp2M(), DPMSolverMultistepScheduler, {"timestep_spacing": "leading", "use_karras_sigmas": True}),
    ],
    ids=lambda value: f"{value.type} {value.spacing}" if isinstance(value, SolverConfig) else "",
)
def test_the_last_part_of_the_steps_from_given_latents_agrees_with_diffusers(
    config: Any, peer: Any, settings: dict[str, Any], steps: int, strength: float
) -> None:
    noise, schedule = unit_noise(torch.float32), SCHEDULES[1100].build(BuildContext())
    ancestral = {"generator": draws()} if config.type == "euler_ancestral" else {}
    wanted = peer_solve_from(peer_of(peer, 1100, **settings), steps, strength, noise, **ancestral)
    solver = config.model_copy(update={"steps": steps}).build(BuildContext())
    latents = picture_latents(torch.float32)
    found = solver.solve(fake, noise, schedule, generator=draws(), latents=latents, strength=strength)
    assert relative(found, wanted) < FLOAT32_TABLES
