from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import diffusers as bench
from benchmarks.__main__ import main
from benchmarks.measure import Sample
from benchmarks.peers.contest import EAGER, Contest, gflop
from benchmarks.peers.text import REAL, SLOTS, merged, padded, spread

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
pytest.importorskip("diffusers", reason="diffusers, the peer, is not installed")

PROMISED = {
    "text_encoder_fp32_20": 18,
    "text_encoder_fp32_60": 10,
    "text_encoder_bf16_20": 8,
    "unet_fp32_torch": 1.9,
    "unet_fp32_openvino": 2.6,
    "unet_bf16_torch": 1.35,
    "unet_bf16_openvino": 2,
    "unet_full_bf16": 1.3,
    "train_step_fp32": 1.5,
    "train_step_bf16": 2,
}


def measure(tmp_path: Path, *arguments: str) -> list[dict[str, Any]]:
    file = tmp_path / "rows.jsonl"
    assert main(["diffusers", "--quick", *arguments, "--json", str(file)]) == 0
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[1:]]


def test_the_cases_and_their_goals_are_those_promised() -> None:
    assert {name: case.goal for name, case in bench.CASES.items()} == PROMISED


@pytest.mark.parametrize("case", ["text_encoder_fp32_20", "text_encoder_fp32_60", "unet_fp32_torch"])
def test_float32_is_diffusers_to_five_digits_on_the_same_weights(tmp_path: Path, case: str) -> None:
    rows = measure(tmp_path, "--case", case)
    assert next(row["peer_name"] for row in rows if row["row"] == "comparison") == EAGER
    for row in rows:
        if row["row"] == "comparison":
            assert 0 < row["error"] <= row["error_limit"] == 1e-5
            assert row["goal"] == (PROMISED[case] if row["peer_name"] == EAGER else 1)


@pytest.mark.parametrize("case", ["text_encoder_bf16_20", "unet_bf16_torch"])
def test_bfloat16_is_as_far_from_float32_as_diffusers_is(tmp_path: Path, case: str) -> None:
    row = measure(tmp_path, "--case", case)[0]
    assert 0 < row["error_float32"] < 2 * row["peer_error_float32"]
    assert row["error"] < row["error_limit"]


@pytest.mark.parametrize(("case", "same"), [("train_step_fp32", 1e-5), ("train_step_bf16", 1e-2)])
def test_every_training_step_has_the_loss_of_diffusers_loop(tmp_path: Path, case: str, same: float) -> None:
    rows = measure(tmp_path, "--case", case)
    assert [row["peer_name"] for row in rows] == [EAGER, f"{EAGER}, tuned"]
    assert all(row["error"] < same and row["rounds"] == 2 for row in rows)


def test_a_row_says_whether_the_goal_is_met_and_how_near_the_peak_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_peak", lambda dtype: 200.0)

    def found(goal: float, *, error: float) -> tuple[int, str]:
        rounds = {"ours": [Sample(1.0, 1.0)] * 3, EAGER: [Sample(2.0, 2.0)] * 3}
        contest = Contest("us", lambda number: rounds, lambda: error, 1e-5, (50.0, 100.0), "float32")
        (row,) = bench._rows("a case", goal, contest, 3)
        shares = row.extra["peak_share"], row.extra["peer_peak_share"]  # type: ignore[union-attr]
        assert (row.ratio, row.extra["least_ratio"], *shares) == (2.0, 2.0, 0.25, 0.25)  # type: ignore[union-attr]
        return row.extra["met"], row.remark  # type: ignore[union-attr, return-value]

    assert found(1.9, error=1e-6) == (1, "goal 1.9: met, 25% of the peak")
    assert found(2.1, error=1e-6) == (0, "goal 2.1: missed, 25% of the peak")
    assert found(1.9, error=1e-3) == (0, "goal 1.9: off by 1e-03, 25% of the peak")


def test_what_is_not_there_is_a_note_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(options: argparse.Namespace) -> Any:
        raise bench.Unavailable("openvino is not installed")

    monkeypatch.setitem(bench.CASES, "unet_fp32_openvino", bench.Case(2.6, absent))
    (note,) = measure(tmp_path, "--case", "unet_fp32_openvino")
    assert (note["row"], note["reason"]) == ("note", "openvino is not installed")


def test_the_full_size_runs_only_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def case(name: str) -> bench.Case:
        def contest(options: argparse.Namespace) -> Any:
            ran.append(name)
            raise bench.Unavailable("counted")

        return bench.Case(1, contest)

    monkeypatch.setattr(bench, "CASES", {name: case(name) for name in PROMISED})
    measure(tmp_path)
    assert ran == [name for name in PROMISED if name != "unet_full_bf16"]
    ran.clear()
    measure(tmp_path, "--full")
    assert ran == list(PROMISED)


def test_merged_text_spreads_to_the_rows_it_was_made_of() -> None:
    rows, pooled = padded(8, 4, "float32")
    text = merged(rows, pooled)
    assert text.key_bias is not None
    assert text.tokens.shape == (2, max(REAL) + 1, 8)
    assert torch.equal(spread(text.tokens, text.key_bias), rows)
    counts = text.key_bias.exp().sum(1)
    assert torch.allclose(counts, torch.full((2,), float(SLOTS)))
    assert math.isinf(text.key_bias[0, 0])


def test_products_of_attention_are_counted() -> None:
    q = torch.ones(1, 2, 16, 8)
    counted = gflop(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q))
    assert counted == pytest.approx(2 * 2 * 2 * 16 * 16 * 8 / 1e9)
