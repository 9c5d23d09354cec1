"""A contract that nothing can fail promises nothing: each of these components breaks one promise and is caught."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from kolors_kernel import BuildContext
from kolors_kernel.kinds import AdapterConfig, GEGLUConfig, NoiseScheduleConfig, SolverConfig, TextEncoderConfig
from kolors_kernel.testing import (
    AdapterContract,
    ComponentContract,
    GEGLUContract,
    NoiseScheduleContract,
    SolverContract,
    TextEncoderContract,
)
from kolors_kernel.testing.fakes import TableSchedule
from kolors_kernel.values import Conditioning, ConditioningSpec


class Encoder(TextEncoderConfig):
    """Encodes lengths and first characters, with one fault."""

    type: Literal["faulty"] = "faulty"
    fault: str = "none"
    """What is wrong with it."""

    def spec(self) -> ConditioningSpec:
        return ConditioningSpec(tokens=2, width=3, pooled=3)

    def build(self, ctx: BuildContext) -> Any:
        return FaultyEncoder(self.fault, getattr(torch, ctx.dtype))


class FaultyEncoder:
    def __init__(self, fault: str, dtype: torch.dtype) -> None:
        self.fault, self.dtype, self.calls = fault, dtype, 0

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        self.calls += 1
        if any(len(p) > 50 for p in prompts) and self.fault != "silent":
            warnings.warn("cut", stacklevel=1)
        rows = [[0.1 * ord(p[0]) if p else 0.0, 1.0, float(self.fault == "fickle") * self.calls] for p in prompts]
        pooled = torch.tensor(rows, dtype=torch.float64 if self.fault == "double" else self.dtype)
        if self.fault == "deaf":
            pooled = torch.zeros_like(pooled)
        if self.fault == "leaky":
            pooled = pooled - pooled.mean(0) * len(prompts)
        tokens = pooled[:, None].repeat(1, 2, 2 if self.fault == "wide" else 1)
        return Conditioning(tokens, pooled)


def failing(contract: ComponentContract[Any], config: Any, folder: Path) -> set[str]:
    """Return the names of the contract's tests that fail, of those that need no more than a folder."""
    contract.config = config
    tests: dict[str, Callable[..., None]] = {
        name: getattr(contract, name) for name in dir(contract) if name.startswith("test_")
    }
    failed = set()
    for name, test in tests.items():
        dtype = "float32" if isinstance(contract, TextEncoderContract) else torch.float32
        offered: dict[str, Any] = {"tmp_path": folder, "dtype": dtype, "prompt": "", "shape": (2, 6), "strength": 0.0}
        try:
            test(**{key: offered[key] for key in inspect.signature(test).parameters})
        except (AssertionError, ExceptionGroup, pytest.fail.Exception):  # Hypothesis groups several faults
            failed.add(name)
    return failed


def test_a_faultless_encoder_passes(tmp_path: Path) -> None:
    assert failing(TextEncoderContract(), Encoder(), tmp_path) == set()


@pytest.mark.parametrize(
    ("fault", "caught_by"),
    [
        ("wide", "test_gives_the_shapes_of_its_spec"),
        ("double", "test_gives_the_shapes_of_its_spec"),
        ("fickle", "test_says_the_same_twice"),
        ("silent", "test_says_aloud_what_it_cuts"),
        ("deaf", "test_reads_each_prompt_by_itself"),
        ("leaky", "test_reads_each_prompt_by_itself"),
    ],
)
def test_a_faulty_encoder_is_caught(tmp_path: Path, fault: str, caught_by: str) -> None:
    assert caught_by in failing(TextEncoderContract(), Encoder(fault=fault), tmp_path)


class Unexplained(Encoder):
    type: Literal["unexplained"] = "unexplained"  # type: ignore[assignment]
    silent: int = 3


def test_settings_without_words_are_caught(tmp_path: Path) -> None:
    assert failing(TextEncoderContract(), Unexplained(), tmp_path) == {"test_explains_itself_and_every_setting"}


class Schedule(NoiseScheduleConfig):
    """Rises at the end."""

    type: Literal["rising"] = "rising"

    def build(self, ctx: BuildContext) -> Any:
        return TableSchedule(torch.tensor([0.9, 0.5, 0.1, 0.2]))


def test_a_schedule_that_rises_is_caught(tmp_path: Path) -> None:
    found = failing(NoiseScheduleContract(), Schedule(), tmp_path)
    assert {"test_signal_falls_from_one_towards_zero", "test_fractions_lie_between_their_neighbours"} <= found


class Lazy(SolverConfig):
    """Stops one step too early."""

    type: Literal["lazy"] = "lazy"

    def build(self, ctx: BuildContext) -> Any:
        return LazySolver()


class LazySolver:
    def solve(
        self,
        denoise: Any,
        noise: Tensor,
        schedule: Any,
        *,
        generator: Any = None,
        latents: Any = None,
        strength: float = 1.0,
    ) -> Tensor:
        for t in range(len(schedule.alpha_bar) - 1, 0, -1):
            here, there = (torch.full((len(noise),), at) for at in (t, t - 1))
            epsilon = denoise(noise, here)
            (signal, scale), (later, less) = (
                [c.view(-1, 1, 1, 1).to(noise.dtype) for c in schedule.coefficients(at)] for at in (here, there)
            )
            noise = (noise - scale * epsilon) / signal * later + less * epsilon
        return noise


def test_a_solver_that_stops_early_is_caught(tmp_path: Path) -> None:
    found = failing(SolverContract(), Lazy(), tmp_path)
    assert "test_finds_the_picture_on_any_schedule" in found


def test_a_solver_that_pays_no_heed_to_given_latents_is_caught(tmp_path: Path) -> None:
    found = failing(SolverContract(), Lazy(), tmp_path)
    assert {
        "test_a_strength_walks_the_end_of_the_way_from_given_latents",
        "test_given_latents_are_diffused_with_the_noise",
        "test_a_strength_that_leaves_no_step_is_refused",
    } <= found


class Tanh(GEGLUConfig):
    """The approximate GELU in place of the exact one."""

    type: Literal["tanh"] = "tanh"

    def build(self, ctx: BuildContext) -> Any:
        return TanhGEGLU()


class TanhGEGLU:
    def refuses(self, x: Tensor) -> str | None:
        return None

    def __call__(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return value * torch.nn.functional.gelu(gate, approximate="tanh")


def test_an_approximate_op_is_caught(tmp_path: Path) -> None:
    assert "test_equals_its_formula" in failing(GEGLUContract(), Tanh(), tmp_path)


class Plain(AdapterConfig):
    """Adds nothing, or takes the backbone's dtype away."""

    type: Literal["plain"] = "plain"
    breaks: bool = False
    """Whether it does."""

    def build(self, ctx: BuildContext) -> Any:
        return PlainAdapter(self.breaks)


class PlainAdapter:
    def __init__(self, breaks: bool) -> None:
        self.breaks = breaks

    def attach(self, backbone: Any) -> Any:
        return Doubled(backbone) if self.breaks else backbone


class Doubled:
    def __init__(self, backbone: Any) -> None:
        self.backbone, self.module, self.predicts = backbone, backbone.module, backbone.predicts

    def predict(self, *inputs: Any) -> Tensor:
        found: Tensor = self.backbone.predict(*inputs)
        return found.double()


@pytest.mark.parametrize("breaks", [False, True])
def test_an_adapter_that_changes_the_dtype_is_caught(tmp_path: Path, breaks: bool) -> None:
    found = failing(AdapterContract(), Plain(breaks=breaks), tmp_path)
    assert found == ({"test_attached_backbone_is_still_a_backbone"} if breaks else set())
