"""The schedules' numbers, each against a formula or a peer that is not ours.

The digits were computed once in float64 from the definitions of the schedules: Kolors' from the released scheduler
settings (scaled_linear, 0.00085 to 0.014, 1100 timesteps), the others from their papers.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
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
from kolors_schedules.tabulated import TabulatedSchedule
from pydantic import ValidationError
from torch import Tensor

from kolors_kernel import BuildContext
from kolors_kernel.kinds import NoiseScheduleConfig

BASE = ScaledLinear()
RELEASED = ScaledLinear(steps=1100, beta_end=0.014)
EXACT = ExtendedScaledLinear()


def alpha_bar(config: NoiseScheduleConfig) -> Tensor:
    return config.build(BuildContext()).alpha_bar


def gap(config: NoiseScheduleConfig, to: NoiseScheduleConfig = BASE) -> tuple[float, int]:
    """Return the largest distance in alpha_bar over the shared timesteps, and where it is."""
    one, other = alpha_bar(config), alpha_bar(to)
    shared = min(len(one), len(other))
    distance = (one[:shared] - other[:shared]).abs()
    return float(distance.max()), int(distance.argmax())


def by_logarithms(betas: list[float]) -> list[float]:
    """Multiply 1 - beta up without multiplying: exactly rounded sums of logarithms."""
    logs = [math.log1p(-beta) for beta in betas]
    return [math.exp(math.fsum(logs[: i + 1])) for i in range(len(logs))]


@pytest.mark.parametrize(
    ("config", "terminal", "snr", "decibel", "sigma"),
    [
        (BASE, 0.0046600985, 0.0046819167, -23.296, 14.6146),
        (RELEASED, 0.0011826558, 0.0011840561, -29.266, 29.0612),
        (EXACT, 0.0012704744, 0.0012720905, -28.955, 28.0376),
        (ScaledLinear(steps=1100), 0.0027244711, 0.0027319141, -25.635, 19.1323),
    ],
    ids=["base", "released", "exact", "1100 steps to the base's beta"],
)
def test_a_schedule_ends_where_it_is_known_to_end(
    config: NoiseScheduleConfig, terminal: float, snr: float, decibel: float, sigma: float
) -> None:
    last = float(alpha_bar(config)[-1])
    assert last == pytest.approx(terminal, rel=1e-7)
    assert last / (1 - last) == pytest.approx(snr, rel=1e-7)
    assert 10 * math.log10(last / (1 - last)) == pytest.approx(decibel, abs=5e-4)
    assert math.sqrt((1 - last) / last) == pytest.approx(sigma, rel=1e-5)


def test_the_exact_extension_holds_the_base_bit_for_bit_and_follows_its_line() -> None:
    extended = alpha_bar(EXACT)
    assert len(extended) == 1100
    assert torch.equal(extended[:1000], alpha_bar(BASE))
    # The same line over 1100 points ends at this beta.
    same = alpha_bar(ScaledLinear(steps=1100, beta_end=0.013827768804018604))
    torch.testing.assert_close(extended, same, rtol=1e-12, atol=0)


def test_the_released_schedule_holds_the_base_only_nearly() -> None:
    released, base = alpha_bar(RELEASED)[:1000], alpha_bar(BASE)
    assert gap(RELEASED) == (pytest.approx(0.0025779, abs=5e-8), 505)
    assert (released <= base).all()
    assert float((released.sqrt() - base.sqrt()).abs().max()) == pytest.approx(0.0031303, abs=5e-8)
    relative = 1 - released / base
    assert float(relative.max()) == pytest.approx(0.0540, abs=5e-5)
    assert int(relative.argmax()) == 999
    assert float((released.logit() - base.logit()).abs().max()) == pytest.approx(0.0558, abs=5e-5)
    assert float(released[999]) == pytest.approx(0.0044084, abs=5e-8)
    # It passes the base's last value between timesteps 994 and 995.
    assert released[994] > base[-1] > released[995]
    assert gap(RELEASED, EXACT)[0] == pytest.approx(0.0025779, abs=5e-8)


def test_the_terminal_ratio_falls_about_fourfold() -> None:
    ends = {config: float(alpha_bar(config)[-1].logit().exp()) for config in (BASE, RELEASED, EXACT)}
    assert ends[BASE] / ends[RELEASED] == pytest.approx(3.954, abs=5e-4)
    assert ends[BASE] / ends[EXACT] == pytest.approx(3.680, abs=5e-4)
    # Twice the side wants four times less: simple diffusion's shift of the base ends nearly where the released does.
    assert float(alpha_bar(LogSNRShift(factor=64 / 128))[-1].logit().exp()) == pytest.approx(0.0011705, abs=5e-8)


@pytest.mark.parametrize(
    ("config", "terminal", "largest"),
    [
        (Linear(), 4.036e-5, 0.2310),
        (Cosine(), 2.43e-9, 0.2234),
        (ZeroTerminalSNR(), 0.0, 0.0353),
        (ZeroTerminalSNR(of=RELEASED), 0.0, 0.0201),
        (LogSNRShift(factor=64 / 128), 1.169e-3, 0.3333),
        (LogSNRShift(factor=32 / 128), 2.925e-4, 0.6000),
        (LogSNRShift(factor=0.7), 2.289e-3, 0.1765),
        (Sigmoid(), 0.0, 0.2357),
        (RectifiedFlow(), 0.0, 0.2686),
        (RectifiedFlow(shift=3), 0.0, 0.2316),
    ],
    ids=lambda value: value.type if isinstance(value, NoiseScheduleConfig) else None,
)
def test_the_rivals_stray_from_the_base(config: NoiseScheduleConfig, terminal: float, largest: float) -> None:
    assert float(alpha_bar(config)[-1]) == pytest.approx(terminal, rel=2e-3, abs=0)
    assert gap(config)[0] == pytest.approx(largest, abs=5e-5)


def test_zero_terminal_snr_of_the_released_schedule_stays_near_it() -> None:
    assert gap(ZeroTerminalSNR(of=RELEASED), RELEASED)[0] == pytest.approx(0.0175, abs=5e-5)


def test_a_shifted_cosine_is_a_cosine_shifted() -> None:
    shifted = alpha_bar(LogSNRShift(of=Cosine(offset=0, max_beta=0.999999), factor=64 / 128))
    time = np.arange(1, 1000) / 1000  # all but the last, where the cosine is cut
    log_snr = -2 * np.log(np.tan(np.pi * time / 2)) + 2 * np.log(64 / 128)
    np.testing.assert_allclose(shifted[:-1].numpy(), 1 / (1 + np.exp(-log_snr)), rtol=1e-9)


def test_input_scaling_is_the_shift_by_its_factor() -> None:
    base, factor = alpha_bar(BASE).numpy(), 0.7
    scaled = factor**2 * base / (factor**2 * base + 1 - base)  # variance of the picture over that of the sum
    np.testing.assert_allclose(alpha_bar(LogSNRShift(factor=factor)).numpy(), scaled, rtol=1e-13)


@pytest.mark.parametrize(("steps", "end"), [(1000, 0.012), (1100, 0.014)])
def test_square_roots_of_betas_lie_on_a_line(steps: int, end: float) -> None:
    first, last = math.sqrt(0.00085), math.sqrt(end)
    betas = [(first + (last - first) * i / (steps - 1)) ** 2 for i in range(steps)]
    found = alpha_bar(ScaledLinear(steps=steps, beta_end=end))
    np.testing.assert_allclose(found.numpy(), by_logarithms(betas), rtol=1e-12)


def test_betas_of_ddpm_lie_on_a_line() -> None:
    betas = [0.0001 + (0.02 - 0.0001) * i / 999 for i in range(1000)]
    np.testing.assert_allclose(alpha_bar(Linear()).numpy(), by_logarithms(betas), rtol=1e-12)


# The peer multiplies a thousand factors in float32: that is the 2e-6.
@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (BASE, {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}),
        (RELEASED, {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.014}),
        (Linear(), {"beta_schedule": "linear"}),
        (Cosine(), {"beta_schedule": "squaredcos_cap_v2"}),
    ],
    ids=["base", "released", "linear", "cosine"],
)
def test_tables_agree_with_diffusers(config: NoiseScheduleConfig, settings: dict[str, object]) -> None:
    found = alpha_bar(config)
    peer = DDPMScheduler(num_train_timesteps=len(found), **settings)
    assert float((found - peer.alphas_cumprod.double()).abs().max()) < 2e-6


def test_zero_terminal_snr_agrees_with_diffusers() -> None:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    peer = (1 - rescale_zero_terminal_snr(betas)).cumprod(0)
    torch.testing.assert_close(alpha_bar(ZeroTerminalSNR()), peer, rtol=0, atol=1e-13)


@pytest.mark.parametrize("config", [BASE, RELEASED], ids=["base", "released"])
def test_noise_is_added_as_diffusers_adds_it(config: ScaledLinear) -> None:
    peer = DDPMScheduler(
        num_train_timesteps=config.steps,
        beta_schedule="scaled_linear",
        beta_start=config.beta_start,
        beta_end=config.beta_end,
    )
    random = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(4, 4, 5, 7, generator=random) for _ in range(2))
    timesteps = torch.tensor([0, 17, 500, config.steps - 1])
    found = config.build(BuildContext()).add_noise(latents, noise, timesteps)
    torch.testing.assert_close(found, peer.add_noise(latents, noise, timesteps), rtol=0, atol=2e-6)


# The peer hands torch tensors to numpy in a way that numpy 2 warns of.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
@pytest.mark.parametrize("config", [BASE, RELEASED], ids=["base", "released"])
def test_fractions_interpolate_sigma_as_euler_solvers_do(config: ScaledLinear) -> None:
    schedule = config.build(BuildContext())
    timesteps = np.random.default_rng(0).uniform(0, config.steps - 1, 200)
    signal, noise = schedule.coefficients(torch.from_numpy(timesteps))
    table = ((1 - schedule.alpha_bar) / schedule.alpha_bar).sqrt().numpy()
    sigma = np.interp(timesteps, np.arange(config.steps), table)
    np.testing.assert_allclose((noise / signal).numpy(), sigma, rtol=1e-12)
    np.testing.assert_allclose((signal**2 + noise**2).numpy(), 1, rtol=1e-13)
    # And as the peer does, up to its float32: linspace over 25 steps falls between timesteps.
    peer = EulerDiscreteScheduler(
        num_train_timesteps=config.steps,
        beta_schedule="scaled_linear",
        beta_start=config.beta_start,
        beta_end=config.beta_end,
    )
    peer.set_timesteps(25)
    signal, noise = schedule.coefficients(peer.timesteps)
    torch.testing.assert_close((noise / signal).float(), peer.sigmas[:-1], rtol=2e-6, atol=1e-6)


def test_the_clean_picture_stands_at_minus_one_and_sigma_grows_from_it_in_a_line() -> None:
    schedule = BASE.build(BuildContext())
    signal, noise = schedule.coefficients(torch.tensor([-1.0, -0.75, 0.0], dtype=torch.float64))
    assert (signal[0], noise[0]) == (1, 0)
    assert float(noise[1] / signal[1]) == pytest.approx(float(noise[2] / signal[2]) / 4, rel=1e-12)


def test_whole_timesteps_are_the_square_roots_themselves() -> None:
    schedule = RELEASED.build(BuildContext())
    for timesteps in (torch.arange(1100), torch.arange(1100, dtype=torch.float32)):
        signal, noise = schedule.coefficients(timesteps)
        assert torch.equal(signal, schedule.alpha_bar.sqrt())
        assert torch.equal(noise, (1 - schedule.alpha_bar).sqrt())


def test_the_last_stretch_to_pure_noise_is_continuous() -> None:
    schedule = ZeroTerminalSNR().build(BuildContext())
    signal, noise = schedule.coefficients(torch.tensor([998, 998 + 1e-9, 998.5, 999 - 1e-9, 999], dtype=torch.float64))
    ratio = (signal / noise).tolist()
    assert ratio[1] == pytest.approx(ratio[0], rel=1e-6)
    assert ratio[2] == pytest.approx(ratio[0] / 2, rel=1e-9)
    assert ratio[3] == pytest.approx(0, abs=1e-9)
    assert (ratio[4], float(noise[4])) == (0, 1)


@pytest.mark.parametrize("timesteps", [[-1.5], [1000.0], [3, 999.5]])
def test_timesteps_off_the_schedule_are_refused(timesteps: list[float]) -> None:
    with pytest.raises(ValueError, match=r"must lie in \[-1, 999\]"):
        BASE.build(BuildContext()).coefficients(torch.tensor(timesteps))


@pytest.mark.parametrize(
    "table", [[0.5], [[0.5, 0.4]], [0.5, 0.5], [0.4, 0.5], [1.0, 0.5], [0.5, 0.0, 0.0], [0.5, -0.1], [0.5, math.nan]]
)
def test_a_table_that_is_no_schedule_is_refused(table: list[float]) -> None:
    with pytest.raises(ValueError, match=r"schedule needs|strictly decreasing"):
        TabulatedSchedule(torch.tensor(table, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_noised_latents_keep_dtype_and_shape(dtype: torch.dtype) -> None:
    latents = torch.ones(2, 4, 3, 5, dtype=dtype)
    found = BASE.build(BuildContext()).add_noise(latents, torch.zeros(2, 4, 3, 5), torch.tensor([0, 999]))
    assert found.dtype == dtype
    assert found.shape == latents.shape
    expected = alpha_bar(BASE)[[0, 999]].sqrt().to(dtype)  # cast once, from float64
    assert torch.equal(found[:, 0, 0, 0], expected)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"type": "scaled_linear", "beta_start": 0.02}, "beta_start 0.02 must not be above beta_end 0.012"),
        ({"type": "scaled_linear", "beta_end": 1.0}, "less than 1"),
        ({"type": "linear", "steps": 1}, "greater than or equal to 2"),
        ({"type": "extended_scaled_linear", "steps": 900}, "steps 900 must not be below base_steps 1000"),
        ({"type": "extended_scaled_linear", "steps": 20000}, "take the last beta to"),
        ({"type": "sigmoid", "start": 3.0}, "start 3 must be below end 3"),
        ({"type": "zero_terminal_snr", "of": {"type": "scaled_linaer"}}, "did you mean 'scaled_linear'"),
        ({"type": "log_snr_shift", "factor": 0}, "greater than 0"),
        ({"type": "cosine", "shift": 0.5}, "cosine has no setting 'shift'"),
    ],
)
def test_wrong_settings_are_named(data: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        NoiseScheduleConfig.model_validate(data)


def test_a_schedule_of_schedules_is_validated_and_written_by_name() -> None:
    data = {
        "type": "zero_terminal_snr",
        "of": {"type": "log_snr_shift", "factor": 0.25, "of": {"type": "linear", "steps": 50}},
    }
    config = NoiseScheduleConfig.model_validate(data)
    assert config == ZeroTerminalSNR(of=LogSNRShift(factor=0.25, of=Linear(steps=50)))
    assert NoiseScheduleConfig.model_validate(config.model_dump()) == config
