"""Conditionings taken apart and put together, and what is measured of time and memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kolors_recipes import measuring
from kolors_recipes.conditioning import by_prompt, together
from kolors_recipes.measuring import Meter
from torch import Tensor

from kolors_kernel.values import Conditioning

MIB = 2**20


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attended(conditioning: Conditioning) -> Tensor:
    """Attend to each prompt's rows with one query."""
    scores = conditioning.tokens @ random(6, seed=9)
    if conditioning.key_bias is not None:
        scores = scores + conditioning.key_bias
    return (scores.softmax(-1)[..., None] * conditioning.tokens).sum(1)


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), order=st.randoms(use_true_random=False))
def test_any_order_and_number_of_prompts_attends_as_each_alone(lengths: list[int], order: object) -> None:
    bias = torch.full((len(lengths), 9), float("-inf"), dtype=torch.float64)
    for row, length in enumerate(lengths):
        bias[row, 9 - length :] = random(length, seed=row)
    batch = Conditioning(random(len(lengths), 9, 6), random(len(lengths), 3), bias, {"scale": random(len(lengths))})
    rows = by_prompt(batch)
    assert [row.tokens.shape[1] for row in rows] == lengths
    chosen = [order.randrange(len(lengths)) for _ in range(4)]  # type: ignore[attr-defined]
    found = together([rows[index] for index in chosen])
    torch.testing.assert_close(attended(found), attended(batch)[chosen], rtol=0, atol=1e-12)
    assert torch.equal(found.pooled, batch.pooled[chosen])
    assert torch.equal(found.extra["scale"], batch.extra["scale"][chosen])


def test_rows_without_a_bias_get_none_unless_they_are_padded() -> None:
    short, long = (Conditioning(random(1, length, 6), random(1, 3)) for length in (2, 5))
    assert together([long, long]).key_bias is None
    padded = together([short, long])
    assert padded.key_bias is not None
    torch.testing.assert_close(attended(padded), torch.cat([attended(short), attended(long)]), rtol=0, atol=1e-12)


def test_a_bias_stays_float32_beside_tokens_of_half_the_width() -> None:
    bias = torch.tensor([[0.0, 5.429]])
    one = Conditioning(torch.zeros(1, 2, 6, dtype=torch.bfloat16), torch.zeros(1, 3), bias)
    found = together(by_prompt(one) * 2)
    assert found.key_bias is not None and found.key_bias.dtype == torch.float32


def test_each_phase_has_its_own_peak_and_times_add_up() -> None:
    meter = Meter("cpu")
    if "within" not in meter.memory:
        pytest.skip("this system does not reset the peak of the resident memory")
    with meter.phase("large"):
        torch.ones(300 * MIB // 4)
    for _ in range(2):
        with meter.phase("small"):
            torch.ones(1)
    large, small = meter.phases["large"], meter.phases["small"]
    assert large.memory - small.memory > 0.25
    assert small.seconds > 0
    assert meter.report()["large"]["memory_gib"] == round(large.memory, 3)
    assert [line.split()[0] for line in meter.lines()] == ["large", "small"]


def test_where_the_peak_cannot_be_reset_the_figure_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(measuring, "_CLEAR", tmp_path / "no such folder" / "file")
    monkeypatch.setattr(measuring, "_STATUS", tmp_path / "nor this")
    meter = Meter("cpu")
    with meter.phase("only"):
        pass
    assert meter.memory == "most resident memory since the start"
    assert meter.phases["only"].memory > 0.01


def test_a_phase_that_fails_is_measured_all_the_same() -> None:
    meter = Meter("cpu")
    with pytest.raises(RuntimeError), meter.phase("failing"):
        raise RuntimeError
    assert "failing" in meter.phases
