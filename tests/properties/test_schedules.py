"""What holds for every schedule, whatever its settings (2.2.2)."""

from __future__ import annotations

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
from torch import Tensor

from kolors_kernel import BuildContext
from kolors_kernel.kinds import NoiseScheduleConfig
from kolors_kernel.protocols import NoiseSchedule


@st.composite
def beta_ranges(draw: st.DrawFn) -> dict[str, float | int]:
    """Settings whose alpha_bar stays above what float64 can hold."""
    steps = draw(st.integers(2, 1500))
    end = min(0.24, draw(st.floats(0.1, 100)) / steps)
    return {"steps": steps, "beta_start": max(1e-6, end * draw(st.floats(1e-3, 0.9))), "beta_end": end}


@st.composite
def extensions(draw: st.DrawFn) -> ExtendedScaledLinear:
    found = draw(beta_ranges())
    base = int(found.pop("steps"))
    return ExtendedScaledLinear(base_steps=base, steps=base + draw(st.integers(1, max(1, base // 2))), **found)


STEPS = st.integers(2, 1500)
PLAIN: st.SearchStrategy[NoiseScheduleConfig] = st.one_of(
    beta_ranges().map(lambda found: ScaledLinear(**found)),
    beta_ranges().map(lambda found: Linear(**found)),
    extensions(),
    st.builds(Cosine, steps=STEPS, offset=st.floats(0, 0.1), max_beta=st.floats(0.9, 0.9999)),
    st.builds(Sigmoid, steps=STEPS, start=st.floats(-4, 0), end=st.floats(0.5, 4), temperature=st.floats(0.4, 3)),
    st.builds(RectifiedFlow, steps=STEPS, shift=st.floats(0.1, 10)),
)
SHIFTED = st.builds(LogSNRShift, of=PLAIN, factor=st.floats(0.05, 5))
ANY: st.SearchStrategy[NoiseScheduleConfig] = st.one_of(PLAIN, SHIFTED, st.builds(ZeroTerminalSNR, of=PLAIN))


def build(config: NoiseScheduleConfig) -> NoiseSchedule:
    return config.build(BuildContext())


def terminal_ratio(schedule: NoiseSchedule) -> float:
    last = float(schedule.alpha_bar[-1])
    return last / (1 - last)


@settings(max_examples=150, deadline=None)
@given(config=ANY)
def test_alpha_bar_falls_strictly_inside_its_range(config: NoiseScheduleConfig) -> None:
    alpha_bar = build(config).alpha_bar
    assert alpha_bar.dtype == torch.float64
    assert (alpha_bar.diff() < 0).all()
    assert alpha_bar[0] < 1
    assert (alpha_bar[:-1] > 0).all()
    ends_in_noise = isinstance(config, ZeroTerminalSNR | Sigmoid | RectifiedFlow)
    if isinstance(config, LogSNRShift):
        ends_in_noise = isinstance(config.of, Sigmoid | RectifiedFlow)
    assert (alpha_bar[-1] == 0) == ends_in_noise


@settings(max_examples=60, deadline=None)
@given(config=ANY, data=st.data())
def test_between_timesteps_the_ratio_stays_between(config: NoiseScheduleConfig, data: st.DataObject) -> None:
    schedule = build(config)
    last = len(schedule.alpha_bar) - 1
    timestep = data.draw(st.floats(-1, last))
    around = torch.tensor([float(int(timestep // 1)), timestep, min(last, timestep // 1 + 1)], dtype=torch.float64)
    signal, noise = schedule.coefficients(around)
    assert (signal.diff() <= 1e-15).all()  # an ulp of 1: normalising rounds
    assert (noise.diff() >= -1e-15).all()
    torch.testing.assert_close(signal**2 + noise**2, torch.ones(3, dtype=torch.float64), rtol=1e-12, atol=0)


@settings(max_examples=60, deadline=None)
@given(extended=extensions())
def test_an_exact_extension_begins_with_its_base_and_ends_lower(extended: ExtendedScaledLinear) -> None:
    base = ScaledLinear(steps=extended.base_steps, beta_start=extended.beta_start, beta_end=extended.beta_end)
    whole, part = build(extended), build(base)
    assert torch.equal(whole.alpha_bar[: extended.base_steps], part.alpha_bar)
    assert terminal_ratio(whole) < terminal_ratio(part)


def test_the_released_extension_holds_the_base_to_less_than_a_line_is_wide_but_not_exactly() -> None:
    base, released = build(ScaledLinear()), build(ScaledLinear(steps=1100, beta_end=0.014))
    distance = (released.alpha_bar[:1000] - base.alpha_bar).abs()
    assert 0.0025 < float(distance.max()) < 0.0026
    assert (distance[1:] > 0).all()
    assert terminal_ratio(released) < terminal_ratio(base)


@settings(max_examples=60, deadline=None)
@given(of=PLAIN, factor=st.floats(0.05, 0.95))
def test_rescaling_and_shifting_down_lower_the_terminal_ratio(of: NoiseScheduleConfig, factor: float) -> None:
    before = terminal_ratio(build(of))
    assert terminal_ratio(build(ZeroTerminalSNR(of=of))) == 0
    shifted = terminal_ratio(build(LogSNRShift(of=of, factor=factor)))
    assert shifted < before or shifted == before == 0


@settings(max_examples=30, deadline=None)
@given(of=PLAIN, factor=st.floats(0.05, 5))
def test_shifting_back_undoes_a_shift(of: NoiseScheduleConfig, factor: float) -> None:
    there_and_back = LogSNRShift(of=LogSNRShift(of=of, factor=factor), factor=1 / factor)
    torch.testing.assert_close(build(there_and_back).alpha_bar, build(of).alpha_bar, rtol=1e-9, atol=1e-15)


def noises(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    shape = (rows, 4, 3, 5)
    return (
        torch.randn(shape, generator=random, dtype=torch.float64),
        torch.randn(shape, generator=random, dtype=torch.float64),
    )


@settings(max_examples=60, deadline=None)
@given(config=ANY, seed=st.integers(0, 2**31), data=st.data())
def test_taking_out_the_noise_that_was_added_gives_the_picture_back(
    config: NoiseScheduleConfig, seed: int, data: st.DataObject
) -> None:
    schedule = build(config)
    last = len(schedule.alpha_bar) - (2 if schedule.alpha_bar[-1] == 0 else 1)
    timesteps = torch.tensor(data.draw(st.lists(st.integers(0, last), min_size=1, max_size=4)))
    picture, noise = noises(len(timesteps), seed)
    noisy = schedule.add_noise(picture, noise, timesteps)
    signal, scale = (c.view(-1, 1, 1, 1) for c in schedule.coefficients(timesteps))
    # Dividing by the signal magnifies the rounding of the sum.
    assert ((noisy - scale * noise) / signal - picture).abs().max() < 1e-14 / float(signal.min())
