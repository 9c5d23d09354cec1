"""What holds for every solver on every schedule: problems whose answer is known.

For a Gaussian picture the exact noise is linear in x, and the probability flow keeps (x_t - mean_t) / deviation_t where
it was at the start: that is the answer of a deterministic solver. A picture of one value is the Gaussian without width.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kolors_schedules.config import (
    Cosine,
    ExtendedScaledLinear,
    Linear,
    LogSNRShift,
    RectifiedFlow,
    ScaledLinear,
    Sigmoid,
    ZeroTerminalSNR,
)
from kolors_solvers.config import DDIM, ClassifierFree, DPMpp2M, Euler, EulerAncestral
from torch import Tensor

from kolors_kernel import BuildContext
from kolors_kernel.kinds import NoiseScheduleConfig, SolverConfig
from kolors_kernel.protocols import Denoise, NoiseSchedule

RELEASED = ScaledLinear(steps=1100, beta_end=0.014)
SCHEDULES: dict[str, NoiseScheduleConfig] = {
    "base": ScaledLinear(),
    "released": RELEASED,
    "extended": ExtendedScaledLinear(),
    "linear": Linear(),
    "cosine": Cosine(),
    "sigmoid": Sigmoid(),
    "flow": RectifiedFlow(shift=3),
    "zero terminal": ZeroTerminalSNR(of=RELEASED),
    "shifted": LogSNRShift(),
}
SPACINGS = ("leading", "trailing", "linspace", "karras")
DETERMINISTIC = (Euler, DDIM, DPMpp2M)
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
every_spacing = pytest.mark.parametrize("spacing", SPACINGS)
# Settings that bound a schedule's steps: as many timesteps as the longest walk of a test, at least.
SOME_SCHEDULES = st.one_of(
    st.sampled_from(list(SCHEDULES.values())),
    st.builds(ScaledLinear, steps=st.integers(100, 1200), beta_end=st.floats(0.002, 0.05)),
    st.builds(LogSNRShift, factor=st.floats(0.2, 2)),
    st.builds(RectifiedFlow, steps=st.integers(100, 1200), shift=st.floats(0.3, 5)),
)


def gaussian(schedule: NoiseSchedule, mean: float, variance: float, starts: list[Tensor]) -> Denoise:
    """Return the exact denoiser of a Gaussian picture; it notes the standardised x it was first asked for."""

    def denoise(x: Tensor, timesteps: Tensor) -> Tensor:
        signal, noise = (c.view(-1, 1, 1, 1) for c in schedule.coefficients(timesteps))
        spread = signal**2 * variance + noise**2
        if not starts:
            starts.append((x - signal * mean) / spread.sqrt())
        return noise * (x - signal * mean) / spread

    return denoise


def unit_noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def solve(config: SolverConfig, schedule: NoiseSchedule, denoise: Denoise, noise: Tensor) -> Tensor:
    random = torch.Generator().manual_seed(1)
    return config.build(BuildContext()).solve(denoise, noise, schedule, generator=random)


@every_schedule
@every_spacing
@pytest.mark.parametrize("cls", DETERMINISTIC)
def test_more_steps_come_nearer_to_the_probability_flow(
    cls: type[Euler | DDIM | DPMpp2M], spacing: str, schedule: NoiseScheduleConfig
) -> None:
    built, mean, variance = schedule.build(BuildContext()), 0.7, 0.3
    errors = []
    for steps in (10, 160):
        starts: list[Tensor] = []
        config = cls.model_validate({"steps": steps, "spacing": spacing})
        found = solve(config, built, gaussian(built, mean, variance, starts), unit_noise(2, 4, 4, 4))
        errors.append(float((found - (mean + math.sqrt(variance) * starts[0])).abs().max()))
    # Sixteen times the steps: a sixteenth of the error for the first order, less while the coarse walk is far off.
    assert errors[1] < errors[0] / 5
    assert errors[1] < 0.1


@every_schedule
def test_the_second_order_is_better_than_the_first(schedule: NoiseScheduleConfig) -> None:
    built, mean, variance = schedule.build(BuildContext()), 0.7, 0.3
    errors = []
    for cls in (DDIM, DPMpp2M):
        starts: list[Tensor] = []
        config = cls.model_validate({"steps": 25, "spacing": "karras"})
        found = solve(config, built, gaussian(built, mean, variance, starts), unit_noise(2, 4, 4, 4))
        errors.append(float((found - (mean + math.sqrt(variance) * starts[0])).abs().max()))
    assert errors[1] < 0.6 * errors[0]


@every_schedule
@pytest.mark.parametrize(
    "config",
    [EulerAncestral(steps=300, spacing="trailing"), DDIM(steps=300, spacing="trailing", eta=0.6)],
    ids=["euler_ancestral", "ddim"],
)
def test_drawing_solvers_reach_the_distribution(config: SolverConfig, schedule: NoiseScheduleConfig) -> None:
    built, mean, variance = schedule.build(BuildContext()), 0.7, 0.3
    found = solve(config, built, gaussian(built, mean, variance, []), unit_noise(1, 4, 50, 50))
    # 10,000 values: three standard errors are 0.016 and 0.013; what is left is the step size and the start.
    assert float(found.mean()) == pytest.approx(mean, abs=0.05)
    assert float(found.var()) == pytest.approx(variance, abs=0.05)


@settings(max_examples=80, deadline=None)
@given(
    schedule=SOME_SCHEDULES,
    cls=st.sampled_from([Euler, EulerAncestral, DDIM, DPMpp2M]),
    spacing=st.sampled_from(SPACINGS),
    steps=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
def test_a_single_picture_is_found_exactly_by_any_number_of_steps(
    schedule: NoiseScheduleConfig, cls: type[SolverConfig], spacing: str, steps: int, seed: int
) -> None:
    built, picture = schedule.build(BuildContext()), unit_noise(2, 4, 2, 3, seed=seed + 1)

    def denoise(x: Tensor, timesteps: Tensor) -> Tensor:
        signal, noise = (c.view(-1, 1, 1, 1) for c in built.coefficients(timesteps))
        return (x - signal * picture) / noise

    found = solve(
        cls.model_validate({"steps": steps, "spacing": spacing}), built, denoise, unit_noise(2, 4, 2, 3, seed=seed)
    )
    # At the Karras levels the timestep told is that of the level only nearly, but the last one is a whole timestep,
    # where it is exact; a walk of one step has only the first, and there the small signal magnifies the rounding.
    assert float((found - picture).abs().max()) < 1e-9


@settings(max_examples=40, deadline=None)
@given(
    schedule=SOME_SCHEDULES,
    cls=st.sampled_from([Euler, EulerAncestral, DDIM, DPMpp2M]),
    spacing=st.sampled_from(SPACINGS),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)),
)
def test_latents_come_out_as_the_noise_went_in(
    schedule: NoiseScheduleConfig, cls: type[SolverConfig], spacing: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    noise = unit_noise(*shape).to(dtype)
    before = noise.clone()
    config = cls.model_validate({"steps": 6, "spacing": spacing})
    found = solve(config, schedule.build(BuildContext()), lambda x, t: x.clone(), noise)
    assert found.shape == noise.shape
    assert found.dtype == dtype
    assert found.isfinite().all()
    assert torch.equal(noise, before)


@settings(max_examples=30, deadline=None)
@given(
    cls=st.sampled_from([Euler, DDIM, DPMpp2M]),
    spacing=st.sampled_from(SPACINGS),
    scale=st.floats(1, 12),
    rescale=st.floats(0, 1),
)
def test_guidance_between_equal_prompts_changes_nothing(
    cls: type[SolverConfig], spacing: str, scale: float, rescale: float
) -> None:
    built, config = RELEASED.build(BuildContext()), cls.model_validate({"steps": 5, "spacing": spacing})
    plain = gaussian(built, 0.2, 0.5, [])
    guided = ClassifierFree(scale=scale, rescale=rescale).build(BuildContext())(plain)
    noise = unit_noise(2, 4, 3, 3)
    found, wanted = solve(config, built, guided, noise), solve(config, built, plain, noise)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
