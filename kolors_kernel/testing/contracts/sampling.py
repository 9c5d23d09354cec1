"""The contracts of sampling: noise schedule, solver, guidance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kolors_kernel.component import BuildContext
from kolors_kernel.kinds import GuidanceConfig, NoiseScheduleConfig, SolverConfig
from kolors_kernel.protocols import Denoise, NoiseSchedule
from kolors_kernel.registry import discover
from kolors_kernel.testing.contracts.component import ComponentContract, examples
from kolors_kernel.testing.fakes import TableSchedule
from kolors_kernel.testing.strategies import alpha_bars


def noise_like(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return unit Gaussian numbers that depend on nothing but the seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class NoiseScheduleContract(ComponentContract[NoiseScheduleConfig]):
    """What every noise schedule promises."""

    def test_signal_falls_from_one_towards_zero(self, tmp_path: Path) -> None:
        """alpha_bar is float64 on the CPU, strictly decreasing in [0, 1); only its last value may be 0."""
        found = self.config.build(self.context(tmp_path)).alpha_bar
        assert found.ndim == 1
        assert found.dtype == torch.float64
        assert found.device.type == "cpu"
        assert (found.diff() < 0).all()
        assert found[0] < 1
        assert (found[:-1] > 0).all()
        assert found[-1] >= 0

    def test_coefficients_are_the_roots_of_alpha_bar(self, tmp_path: Path) -> None:
        """At whole timesteps signal^2 is alpha_bar and signal^2 + noise^2 is 1; -1 is the clean picture."""
        schedule = self.config.build(self.context(tmp_path))
        signal, noise = schedule.coefficients(torch.arange(len(schedule.alpha_bar)))
        assert signal.dtype == noise.dtype == torch.float64
        torch.testing.assert_close(signal**2, schedule.alpha_bar, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(signal**2 + noise**2, torch.ones_like(signal), rtol=1e-12, atol=0)
        clean = schedule.coefficients(torch.tensor([-1]))
        assert [c.item() for c in clean] == [1.0, 0.0]

    def test_fractions_lie_between_their_neighbours(self, tmp_path: Path) -> None:
        """Interpolation keeps the order, from -1 to the last timestep."""
        schedule = self.config.build(self.context(tmp_path))
        timesteps = torch.arange(-1, len(schedule.alpha_bar) - 0.75, 0.25, dtype=torch.float64)
        signal, noise = schedule.coefficients(timesteps)
        assert (signal.diff() < 0).all()
        assert (noise.diff() > 0).all()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
    def test_adds_noise_by_its_coefficients(self, tmp_path: Path, dtype: torch.dtype) -> None:
        """signal * latents + noise scale * noise, row by row, in the latents' dtype; nothing given is changed."""
        schedule = self.config.build(self.context(tmp_path))
        latents, noise = noise_like(3, 4, 2, 2, dtype=dtype), noise_like(3, 4, 2, 2, seed=1, dtype=dtype)
        timesteps, before = torch.tensor([0, 1, len(schedule.alpha_bar) - 1]), (latents.clone(), noise.clone())
        found = schedule.add_noise(latents, noise, timesteps)
        signal, scale = (c.view(-1, 1, 1, 1) for c in schedule.coefficients(timesteps))
        assert found.dtype == dtype
        tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 3e-2}[dtype]
        wanted = signal * latents.double() + scale * noise.double()
        torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance)
        assert torch.equal(latents, before[0])
        assert torch.equal(noise, before[1])


class SolverContract(ComponentContract[SolverConfig]):
    """What every solver promises."""

    def solve(self, schedule: NoiseSchedule, seed: int = 0, **start: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Solve for a data set of one known picture; return what came out, the picture, and the timesteps asked for.

        With one picture x_0 the exact noise is (x_t - signal * x_0) / noise scale, so every solver must find x_0.
        """
        picture, asked = noise_like(2, 4, 4, 6, seed=7), list[Tensor]()

        def denoise(noisy: Tensor, timesteps: Tensor) -> Tensor:
            asked.append(timesteps)
            signal, scale = (c.view(-1, 1, 1, 1) for c in schedule.coefficients(timesteps))
            return (noisy - signal * picture) / scale

        noise = noise_like(2, 4, 4, 6, seed=seed)
        before = noise.clone()
        generator = torch.Generator().manual_seed(seed)
        solver = self.config.build(BuildContext(dtype="float64"))
        found = solver.solve(denoise, noise, schedule, generator=generator, **start)
        assert torch.equal(noise, before), "solve changed the noise it was given"
        return found, picture, asked

    @examples(25)
    @given(alpha_bar=alpha_bars())
    def test_finds_the_picture_on_any_schedule(self, alpha_bar: Tensor) -> None:
        """Nothing but the length of alpha_bar and `coefficients` is known of the schedule."""
        found, picture, _ = self.solve(TableSchedule(alpha_bar))
        torch.testing.assert_close(found, picture, rtol=0, atol=1e-6)

    @examples(10)
    @given(alpha_bar=alpha_bars(zero_terminal=True))
    def test_stays_finite_where_no_signal_is_left(self, alpha_bar: Tensor) -> None:
        """A schedule may end in pure noise."""
        found, _, _ = self.solve(TableSchedule(alpha_bar))
        assert found.isfinite().all()

    def test_finds_the_picture_on_every_installed_schedule(self, tmp_path: Path) -> None:
        """Any solver works with any schedule a recipe can name."""
        for config in discover().of_kind("noise_schedule"):
            assert issubclass(config, NoiseScheduleConfig)
            schedule = config.tiny().build(self.context(tmp_path))
            if schedule.alpha_bar[-1] > 0:
                found, picture, _ = self.solve(schedule)
                assert (found - picture).abs().max() < 1e-5, f"on {config.tiny()}"

    def test_asks_at_timesteps_of_the_schedule(self) -> None:
        """Each call has one timestep per row, in [0, T - 1], and time runs backwards."""
        _, _, asked = self.solve(TableSchedule(torch.linspace(0.99, 0.01, 50, dtype=torch.float64)))
        assert asked
        assert all(t.shape == (2,) for t in asked)
        firsts = torch.stack([t[0].double() for t in asked])
        assert (firsts >= 0).all()
        assert (firsts <= 49).all()
        assert firsts[-1] < firsts[0]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_keeps_shape_and_dtype(self, tmp_path: Path, dtype: torch.dtype) -> None:
        """Latents come out as the noise went in."""
        schedule = TableSchedule(torch.linspace(0.99, 0.01, 50, dtype=torch.float64))
        noise = noise_like(1, 4, 2, 6, dtype=dtype)
        generator = torch.Generator().manual_seed(0)
        solver = self.config.build(self.context(tmp_path))
        found = solver.solve(lambda x, t: x * 0.5, noise, schedule, generator=generator)
        assert found.shape == noise.shape
        assert found.dtype == dtype

    def test_same_seed_gives_the_same_latents(self) -> None:
        """All randomness is the generator's: no global state moves, and no state is kept between calls."""
        schedule, state = TableSchedule(torch.linspace(0.99, 0.01, 50, dtype=torch.float64)), torch.get_rng_state()
        solver = self.config.build(BuildContext(dtype="float64"))
        noise = noise_like(1, 4, 2, 6)
        found = [
            solver.solve(lambda x, t: x.sin(), noise, schedule, generator=torch.Generator().manual_seed(3))
            for _ in range(2)
        ]
        assert torch.equal(*found)
        assert torch.equal(state, torch.get_rng_state())

    @examples(10)
    @given(alpha_bar=alpha_bars(), strength=st.sampled_from([0.5, 0.75, 1.0]))
    def test_a_strength_walks_the_end_of_the_way_from_given_latents(self, alpha_bar: Tensor, strength: float) -> None:
        """A tiny solver has at least two steps; the latents are not changed, and the picture is found from any."""
        schedule, latents = TableSchedule(alpha_bar), noise_like(2, 4, 4, 6, seed=11)
        before = latents.clone()
        found, picture, asked = self.solve(schedule, latents=latents, strength=strength)
        whole = [float(t[0]) for t in self.solve(schedule)[2]]
        assert torch.equal(latents, before), "solve changed the latents it was given"
        assert [float(t[0]) for t in asked] == whole[len(whole) - int(len(whole) * strength) :]
        torch.testing.assert_close(found, picture, rtol=0, atol=1e-6)

    def test_given_latents_are_diffused_with_the_noise(self) -> None:
        """The first x_t asked for is signal * latents + noise scale * noise."""
        schedule = TableSchedule(torch.linspace(0.99, 0.01, 50, dtype=torch.float64))
        noise, latents, seen = noise_like(2, 4, 2, 6), noise_like(2, 4, 2, 6, seed=5), list[tuple[Tensor, Tensor]]()

        def denoise(noisy: Tensor, timesteps: Tensor) -> Tensor:
            seen.append((noisy.clone(), timesteps))
            return noisy * 0.5

        solver, generator = self.config.build(BuildContext(dtype="float64")), torch.Generator().manual_seed(0)
        solver.solve(denoise, noise, schedule, generator=generator, latents=latents, strength=0.5)
        noisy, timesteps = seen[0]
        signal, scale = (c.view(-1, 1, 1, 1) for c in schedule.coefficients(timesteps))
        torch.testing.assert_close(noisy, signal * latents + scale * noise, rtol=0, atol=1e-9)

    @pytest.mark.parametrize("strength", [0.0, -0.5, 1.01, float("nan"), 1e-9])
    def test_a_strength_that_leaves_no_step_is_refused(self, strength: float) -> None:
        """As are those that are no share at all."""
        with pytest.raises(ValueError, match="strength"):
            self.solve(
                TableSchedule(torch.linspace(0.99, 0.01, 50, dtype=torch.float64)),
                latents=noise_like(2, 4, 4, 6),
                strength=strength,
            )


class GuidanceContract(ComponentContract[GuidanceConfig]):
    """What every guidance promises."""

    def guided(self, denoise: Denoise, folder: Path) -> tuple[Denoise, int]:
        """Return the guided denoiser and how many rows it asks for per row."""
        guidance = self.config.build(self.context(folder))
        return guidance(denoise), 2 if guidance.uses_negative else 1

    @examples(10)
    @given(rows=st.integers(1, 3))
    def test_leaves_agreement_alone(self, tmp_path_factory: pytest.TempPathFactory, rows: int) -> None:
        """Where negative and positive predict the same, there is nothing to steer."""
        denoise, _ = self.guided(lambda x, t: x * 0.25 + 1, tmp_path_factory.mktemp("guidance"))
        noisy = noise_like(rows, 4, 4, 4, dtype=torch.float32)
        found = denoise(noisy, torch.full((rows,), 5))
        assert found.dtype == noisy.dtype
        torch.testing.assert_close(found, noisy * 0.25 + 1, rtol=1e-4, atol=1e-4)

    def test_asks_for_the_rows_it_says(self, tmp_path: Path) -> None:
        """2B rows with the negative ones first if `uses_negative`, else B; the same latents and timesteps in both."""
        seen: list[tuple[Tensor, Tensor]] = []

        def denoise(noisy: Tensor, timesteps: Tensor) -> Tensor:
            seen.append((noisy.clone(), timesteps.clone()))
            return noisy

        guided, factor = self.guided(denoise, tmp_path)
        noisy, timesteps = noise_like(2, 4, 4, 4), torch.tensor([9, 3])
        before = noisy.clone()
        assert guided(noisy, timesteps).shape == noisy.shape
        assert torch.equal(noisy, before)
        assert seen
        for latents, times in seen:
            assert torch.equal(latents, torch.cat([noisy] * factor))
            assert torch.equal(times, torch.cat([timesteps] * factor))
