"""Where the solvers step, what they refuse, and what they do at the ends of a schedule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kolors_schedules.config import Linear, ScaledLinear, ZeroTerminalSNR
from kolors_solvers.config import DDIM, DPMpp2M, Euler, EulerAncestral
from kolors_solvers.levels import Spacing
from pydantic import ValidationError
from torch import Tensor

from kolors_kernel import BuildContext
from kolors_kernel.kinds import SolverConfig
from kolors_kernel.protocols import NoiseSchedule

RELEASED = ScaledLinear(steps=1100, beta_end=0.014)


def schedule_of(config: Any) -> NoiseSchedule:
    built: NoiseSchedule = config.build(BuildContext())
    return built


def timesteps_of(spacing: Spacing, config: Any = RELEASED) -> list[float]:
    return spacing.walk(schedule_of(config)).timesteps


# Computed once from the released settings: a stride of 1100 // steps, offset 1.
@pytest.mark.parametrize(
    ("steps", "first", "sigma", "share"),
    [(20, 1046, 20.26, 0.70), (25, 1057, 21.78, 0.75), (30, 1045, 20.12, 0.69), (50, 1079, 25.28, 0.87)],
)
def test_the_released_spacing_starts_short_of_the_end(steps: int, first: int, sigma: float, share: float) -> None:
    walk = Spacing(steps, "leading").walk(schedule_of(RELEASED))
    assert walk.timesteps[0] == first
    assert walk.levels[0].noise / walk.levels[0].signal == pytest.approx(sigma, abs=5e-3)
    assert walk.levels[0].noise / walk.levels[0].signal / 29.0612 == pytest.approx(share, abs=5e-3)


def test_the_base_with_25_leading_steps_starts_at_961() -> None:
    walk = Spacing(25, "leading").walk(schedule_of(ScaledLinear()))
    assert walk.timesteps[0] == 961
    assert walk.levels[0].noise / walk.levels[0].signal == pytest.approx(11.68, abs=5e-3)


@pytest.mark.parametrize("name", ["trailing", "linspace", "karras"])
def test_other_spacings_start_at_the_end(name: Any) -> None:
    walk = Spacing(25, name).walk(schedule_of(RELEASED))
    assert walk.timesteps[0] == pytest.approx(1099, abs=1e-9)
    assert walk.levels[0].noise / walk.levels[0].signal == pytest.approx(29.0612, abs=5e-5)
    assert (walk.levels[-1].signal, walk.levels[-1].noise) == (1, 0)


def test_spacings_place_their_steps() -> None:
    assert timesteps_of(Spacing(5, "leading")) == [881, 661, 441, 221, 1]
    assert timesteps_of(Spacing(5, "leading", offset=0)) == [880, 660, 440, 220, 0]
    assert timesteps_of(Spacing(5, "trailing")) == [1099, 879, 659, 439, 219]
    assert timesteps_of(Spacing(5, "linspace")) == [1099, 824.25, 549.5, 274.75, 0]
    assert timesteps_of(Spacing(5, "linspace", whole=True)) == [1099, 824, 550, 275, 0]
    assert timesteps_of(Spacing(1, "linspace")) == timesteps_of(Spacing(1, "karras")) == [1099]
    # One more point than steps, without the lowest: 1100 // 6 is 183.
    assert timesteps_of(Spacing(5, "leading", end_is_a_point=True)) == [916, 733, 550, 367, 184]
    assert timesteps_of(Spacing(4, "linspace", whole=True, end_is_a_point=True)) == [1099, 824, 550, 275]


def test_karras_levels_are_even_in_the_seventh_root_and_told_by_their_logarithm() -> None:
    schedule = schedule_of(RELEASED)
    walk = Spacing(9, "karras").walk(schedule)
    sigmas = torch.tensor([level.noise / level.signal for level in walk.levels[:-1]], dtype=torch.float64)
    roots = sigmas ** (1 / 7)
    torch.testing.assert_close(roots.diff(), roots.diff().mean().expand(8), rtol=1e-10, atol=0)
    assert all(level.signal**2 + level.noise**2 == pytest.approx(1, rel=1e-14) for level in walk.levels)
    table = ((1 - schedule.alpha_bar) / schedule.alpha_bar).sqrt().log()
    for timestep, sigma in zip(walk.timesteps, sigmas.log().tolist(), strict=True):
        below = min(int(timestep), 1098)
        part = timestep - below
        assert float((1 - part) * table[below] + part * table[below + 1]) == pytest.approx(sigma, abs=1e-10)
    told = Spacing(9, "karras", whole=True).walk(schedule)
    assert told.timesteps == [round(timestep) for timestep in walk.timesteps]
    assert told.levels == walk.levels


@pytest.mark.parametrize(
    ("spacing", "length"),
    [(Spacing(30, "leading"), 20), (Spacing(20, "leading"), 20), (Spacing(30, "trailing"), 20)],
    ids=["stride 0", "offset past the end", "trailing twice at one timestep"],
)
def test_steps_that_do_not_fit_are_refused(spacing: Spacing, length: int) -> None:
    with pytest.raises(ValueError, match=rf"{spacing.steps} steps of .* do not fit on a schedule of 20 timesteps"):
        spacing.walk(schedule_of(Linear(steps=length)))


def test_an_offset_past_the_end_is_refused() -> None:
    with pytest.raises(ValueError, match=r"would go 1106, 1062"):
        Spacing(25, "leading", offset=50).walk(schedule_of(RELEASED))


@pytest.mark.parametrize("name", ["trailing", "linspace", "karras"])
def test_a_walk_from_pure_noise_begins_one_timestep_earlier(name: Any) -> None:
    schedule = schedule_of(ZeroTerminalSNR(of=RELEASED))
    walk = Spacing(10, name).walk(schedule)
    assert walk.timesteps[0] == pytest.approx(1098, abs=1e-9)
    assert walk.levels[0].signal == pytest.approx(float(schedule.alpha_bar[1098].sqrt()), rel=1e-9)
    assert all(level.signal > 0 for level in walk.levels)


def test_leading_spacing_never_sees_pure_noise_and_is_not_moved() -> None:
    assert timesteps_of(Spacing(25, "leading"), ZeroTerminalSNR(of=RELEASED))[0] == 1057


@pytest.mark.parametrize(
    ("strength", "message"),
    [(0.05, r"strength 0\.05 leaves none of 10 steps; give at least 0\.1"), (1.5, "at most 1"), (0.0, "above 0")],
)
def test_a_strength_that_leaves_no_step_is_refused(strength: float, message: str) -> None:
    solver = Euler(steps=10).build(BuildContext())
    noise = torch.zeros(1, 4, 2, 2)
    with pytest.raises(ValueError, match=message):
        solver.solve(lambda x, t: x, noise, schedule_of(RELEASED), latents=noise, strength=strength)


def test_a_strength_without_latents_is_refused() -> None:
    with pytest.raises(ValueError, match=r"strength 0\.5 needs latents to begin from"):
        DPMpp2M().build(BuildContext()).solve(
            lambda x, t: x, torch.zeros(1, 4, 2, 2), schedule_of(RELEASED), strength=0.5
        )


def share_of_the_mean_that_is_lost(solver: SolverConfig) -> float:
    """Draw pictures whose pixels are all Gaussian around 1 with variance 0.3, for which the exact noise is known."""
    schedule = schedule_of(RELEASED)

    def denoise(x: Tensor, timesteps: Tensor) -> Tensor:
        signal, noise = (c.view(-1, 1, 1, 1) for c in schedule.coefficients(timesteps))
        return noise * (x - signal) / (signal**2 * 0.3 + noise**2)

    found = solver.build(BuildContext()).solve(denoise, torch.zeros(1, 1, 1, 1, dtype=torch.float64), schedule)
    return 1 - float(found)


# A walk begins with noise alone. Where the first level still has some picture in it, that much of the mean is missing.
@pytest.mark.parametrize(
    ("solver", "lost"),
    [(Euler(steps=50), 0.0206), (Euler(steps=25), 0.0229), (DPMpp2M(spacing="leading"), 0.0246)],
    ids=lambda value: f"{value.type} {value.steps}" if isinstance(value, SolverConfig) else "",
)
def test_trailing_and_karras_spacing_use_the_end_that_leading_never_visits(solver: Any, lost: float) -> None:
    assert share_of_the_mean_that_is_lost(solver) == pytest.approx(lost, abs=1e-4)
    for spacing in ("trailing", "karras"):
        assert share_of_the_mean_that_is_lost(solver.model_copy(update={"spacing": spacing})) < 0.9 * lost


def first_input(config: SolverConfig, schedule: NoiseSchedule, noise: Tensor) -> Tensor:
    seen: list[Tensor] = []

    def denoise(x: Tensor, timesteps: Tensor) -> Tensor:
        seen.append(x.clone())
        return x

    config.build(BuildContext()).solve(denoise, noise, schedule, generator=torch.Generator().manual_seed(0))
    return seen[0]


@pytest.mark.parametrize("cls", [Euler, EulerAncestral])
def test_euler_starts_from_unit_noise_when_leading_and_from_scaled_noise_else(cls: Any) -> None:
    schedule, noise = schedule_of(RELEASED), torch.ones(1, 1, 1, 2, dtype=torch.float64)
    assert torch.equal(first_input(cls(steps=4, spacing="leading"), schedule, noise), noise)
    scale = (1 - schedule.alpha_bar[-1]).sqrt()
    for spacing in ("trailing", "linspace", "karras"):
        started = first_input(cls(steps=4, spacing=spacing), schedule, noise)
        torch.testing.assert_close(started, scale * noise, rtol=1e-12, atol=0)


@pytest.mark.parametrize("cls", [DDIM, DPMpp2M])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", "karras"])
def test_ddim_and_dpmpp_start_from_unit_noise(cls: Any, spacing: str) -> None:
    noise = torch.ones(1, 1, 1, 2)
    assert torch.equal(first_input(cls(steps=4, spacing=spacing), schedule_of(RELEASED), noise), noise)


@pytest.mark.parametrize("config", [EulerAncestral(), DDIM(eta=0.5)], ids=["euler_ancestral", "ddim"])
def test_a_solver_that_draws_asks_for_a_generator(config: SolverConfig) -> None:
    with pytest.raises(ValueError, match="need a generator"):
        config.build(BuildContext()).solve(lambda x, t: x, torch.zeros(1, 4, 2, 2), schedule_of(RELEASED))


@pytest.mark.parametrize("config", [Euler(steps=3), DDIM(steps=3), DPMpp2M(steps=3)], ids=lambda c: c.type)
def test_a_solver_that_draws_nothing_leaves_the_generator_alone(config: SolverConfig) -> None:
    generator = torch.Generator().manual_seed(5)
    before = generator.get_state()
    noise = torch.ones(1, 4, 2, 2)
    config.build(BuildContext()).solve(lambda x, t: x, noise, schedule_of(RELEASED), generator=generator)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cls", [Euler, EulerAncestral, DDIM, DPMpp2M])
def test_half_types_are_stepped_in_float32(cls: Any, dtype: torch.dtype) -> None:
    asked: set[torch.dtype] = set()

    def denoise(x: Tensor, timesteps: Tensor) -> Tensor:
        asked.add(x.dtype)
        assert timesteps.dtype == torch.float32  # 1098.5 has no bfloat16
        return torch.zeros_like(x)

    noise = torch.ones(2, 4, 3, 5, dtype=dtype)
    random = torch.Generator().manual_seed(0)
    schedule = schedule_of(RELEASED)
    found = cls(steps=50).build(BuildContext()).solve(denoise, noise, schedule, generator=random)
    assert asked == {dtype}
    assert found.dtype == dtype
    assert found.shape == noise.shape
    if cls is not EulerAncestral:
        # With no noise predicted x_0 is x over its signal, once rounded; fifty roundings in bfloat16 would show.
        walk = cls(steps=50).build(BuildContext()).spacing.walk(schedule)
        wanted = torch.full_like(noise, 1 / walk.levels[0].signal, dtype=torch.float64)
        torch.testing.assert_close(found.double(), wanted, rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"type": "euler", "steps": 0}, "greater than 0"),
        ({"type": "euler", "spacing": "karas"}, "'leading', 'trailing', 'linspace' or 'karras'"),
        ({"type": "euler", "steps_offset": -1}, "greater than or equal to 0"),
        ({"type": "ddim", "eta": 1.5}, "less than or equal to 1"),
        ({"type": "dpmpp2m"}, "did you mean 'dpmpp_2m'"),
    ],
)
def test_wrong_settings_are_named(data: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SolverConfig.model_validate(data)
