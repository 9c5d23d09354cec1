from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.quantisation import OURS, _community


def test_every_form_is_measured_in_the_small_model_and_after_each_layer(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    assert main(["quantisation", "--steps", "1", "--width", "256", "--layers", "2", "--json", str(file)]) == 0
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    found = [row for row in rows if row["row"] == "comparison" and row["peer_name"] == "int4, a scale per row"]
    assert {row["case"] for row in found} == {"small model", "256 wide, layer 1", "256 wide, layer 2"}
    assert {row["ours_name"] for row in found} == {name for name, (bits, _) in OURS.items() if bits == 4}
    for row in found:
        # Groups and the integer below zero both make ours finer than one scale per row; both are coarser than bfloat16.
        assert row["bfloat16_tokens_error"] < row["ours_tokens_error"] < row["peer_tokens_error"] < 0.2
        assert 0.9 < row["ours_pooled_least_cosine"] < 1
    assert all(row["ours_latents_error"] > 0 for row in found if row["case"] == "small model")


def test_the_form_that_is_passed_around_rounds_to_sevenths_of_a_rows_largest() -> None:
    weight = torch.tensor([[7.0, -3.6, 0.4], [0.0, 0.7, 0.26]])
    assert _community(weight) == pytest.approx(torch.tensor([[7.0, -4.0, 0.0], [0.0, 0.7, 0.3]]), abs=1e-3)
