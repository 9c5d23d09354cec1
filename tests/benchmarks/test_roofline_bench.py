from __future__ import annotations

import argparse
import json
import math
from collections import Counter as Tally
from pathlib import Path
from typing import Any

import pytest
import torch
from kolors_sdxl.architecture import UNetArchitecture, UNetShape
from kolors_sdxl.backbone import random_unet
from kolors_sdxl.blocks import Ops
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import roofline
from benchmarks.__main__ import main
from benchmarks.limits import forward
from benchmarks.limits.counted import Counter, Launched, size_of
from benchmarks.limits.forward import Given, op_of
from benchmarks.limits.page import END, START, tables
from benchmarks.shapes import UNETS

pytest.importorskip("triton", reason="plans name kernels, which are Triton's")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

ROOT = Path(__file__).parents[2]
PAGE, WRITTEN = ROOT / "docs/roofline.md", ROOT / "benchmarks/results/roofline.jsonl"
SMALL = UNetShape(
    UNetArchitecture(
        block_channels=(32, 64),
        layers_per_block=1,
        transformer_layers=(0, 1),
        heads=(1, 2),
        cross_attention_width=48,
        size_embedding_width=8,
        groups=8,
    ),
    context_width=40,
    pooled_width=24,
    channels=4,
    out_channels=4,
)


@pytest.fixture(scope="module")
def released() -> list[Launched]:
    return forward.before(Given(), forward.RELEASED)


def counted(work: Any) -> list[Launched]:
    counter = Counter()
    with torch.no_grad(), counter:
        work()
    return counter.launched


def meta(*sizes: int) -> torch.Tensor:
    return torch.empty(*sizes, dtype=torch.bfloat16, device="meta")


def test_an_operator_moves_its_inputs_and_its_results_once() -> None:
    x, y = meta(3, 8), meta(3, 8)
    assert [each.moved for each in counted(lambda: x + y)] == [3 * 48]
    assert [each.moved for each in counted(lambda: x.add_(y))] == [3 * 48]
    assert [each.moved for each in counted(lambda: x * x)] == [2 * 48]
    assert [each.moved for each in counted(lambda: x.new_full((4,), 1.0))] == [8]
    assert [(each.moved, each.flop) for each in counted(lambda: x @ y.T)] == [(2 * 48 + 18, 2 * 3 * 3 * 8)]


def test_views_and_allocations_are_no_launches() -> None:
    x = meta(4, 6)
    assert not counted(lambda: (x.view(2, 12), x.mT, x[1:], x.chunk(2, dim=1), x.expand(3, 4, 6), torch.empty_like(x)))


def test_what_a_stride_of_0_repeats_is_there_once() -> None:
    assert size_of([meta(2, 3, 1, 1).expand(2, 3, 9, 9), None, 5]) == 12


def test_torch_reads_the_input_of_a_group_norm_twice() -> None:
    norm, x = nn.GroupNorm(2, 4, device="meta", dtype=torch.bfloat16), meta(2, 4, 64, 64)
    found = counted(lambda: norm(x))
    assert len(found) == 3
    assert 3 * size_of(x) < sum(each.moved for each in found) < 3.02 * size_of(x)


def test_a_convolution_of_mixed_layouts_copies_its_weight_and_adds_its_bias_by_itself() -> None:
    layer = nn.Conv2d(4, 6, 3, padding=1, device="meta", dtype=torch.bfloat16)
    x = meta(2, 4, 16, 16)
    made = size_of(meta(2, 6, 16, 16))
    plain = counted(lambda: layer(x))
    assert [each.name for each in plain] == ["aten::convolution", "aten::add_"]
    assert [each.moved for each in plain] == [size_of([x, layer.weight]) + made, 2 * made + 12]
    assert plain[0].flop == 2 * 2 * 6 * 256 * 4 * 9
    mixed = counted(lambda: layer(x.to(memory_format=torch.channels_last)))[1:]  # the first is the change of x
    assert [each.name for each in mixed] == ["aten::clone", "aten::convolution", "aten::add_"]
    assert mixed[0].moved == 2 * size_of(layer.weight)


def test_the_released_net_is_diffusers_net_of_it(released: list[Launched], monkeypatch: pytest.MonkeyPatch) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers, the peer, is not installed")
    from benchmarks.peers.unet import SETTINGS

    def flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: Any, **how: Any) -> Any:
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", flash)  # which torch takes where there is a GPU
    settings = {"encoder_hid_dim": 4096, "projection_class_embeddings_input_dim": 4096 + 6 * 256, **SETTINGS["full"]}
    flops, counter = FlopCounterMode(display=False), Counter()
    with torch.device("meta"), torch.no_grad():
        net = diffusers.UNet2DConditionModel(**settings).to(torch.bfloat16)
        told = {"text_embeds": meta(2, 4096), "time_ids": meta(2, 6)}
        with flops, counter:
            net(meta(2, 4, 128, 128), torch.empty(2), meta(2, 256, 4096), added_cond_kwargs=told)
    unused: Any = None
    ours = random_unet(forward.RELEASED, Ops(unused, unused, unused, unused), device="meta")
    sizes = [sum(weight.numel() for weight in each.parameters()) for each in (net, ours)]
    assert sizes == [2_579_458_820] * 2
    assert flops.get_total_flops() == pytest.approx(13.93e12, rel=0.001)
    assert sum(each.flop for each in released) == pytest.approx(flops.get_total_flops(), rel=0.01)
    assert len(released) == pytest.approx(len(counter.launched), rel=0.02)
    copies, theirs = (sum(e.moved for e in side if op_of(e) == forward.COPIES) for side in (released, counter.launched))
    moved, their_moved = (sum(each.moved for each in side) for side in (released, counter.launched))
    assert moved - copies == pytest.approx(their_moved - theirs, rel=0.005)
    assert their_moved == pytest.approx(0.96 * moved, rel=0.01)  # our layouts make torch copy more, as the page says


def test_the_ops_are_called_at_the_shapes_that_walking_the_levels_gives(released: list[Launched]) -> None:
    calls: dict[tuple[str, str], int] = {}
    for each in released:
        if each.shape:
            calls[each.op, each.shape] = max(each.call, calls.get((each.op, each.shape), 0))
    kolors, walked = UNETS["kolors_1024"], Tally[tuple[str, str]]()
    for (batch, heads, queries, keys, width), times in kolors.attention().items():
        walked["attention", f"{batch}x{heads}x{queries}x{width} to {keys}"] = times
    for kind, shapes in (("geglu", kolors.geglu()), ("group_norm_silu", kolors.group_norm_silu())):
        for shape, times in shapes.items():
            walked[kind, "x".join(map(str, shape))] = times
    others = {name for name in calls if name[1].endswith(("no silu", "no sum")) or name[0] == "add_layer_norm"}
    assert {name: times for name, times in calls.items() if name not in others} == walked
    assert sum(calls[name] for name in others if name[1].endswith("no silu")) == 11
    assert sum(calls[name] for name in others if name[0] == "add_layer_norm") == 210


def test_the_divisions_are_those_of_the_released_layout(released: list[Launched]) -> None:
    assert sum(op_of(each) == forward.DIVISIONS for each in released) == 140 + 17  # attentions and residual blocks


@pytest.mark.parametrize("family", ["sm_80", "sm_90"])
def test_the_kernels_move_less_in_fewer_launches_and_compute_the_same(family: str) -> None:
    given = Given(side=32, rows=7)
    sides = [forward.before(given, SMALL), forward.after(given, family, SMALL)]
    moved, launches = ([Tally[str](), Tally[str]()] for _ in range(2))
    for each, total, number in zip(sides, moved, launches, strict=True):
        for launch in each:
            total[op_of(launch)] += launch.moved
            number[op_of(launch)] += 1
    for kind in ("geglu", "group_norm_silu", "add_layer_norm"):
        assert moved[1][kind] < moved[0][kind]
        assert launches[1][kind] <= launches[0][kind]
    assert {forward.TEXT, forward.DIVISIONS} == moved[0].keys() - moved[1].keys()
    assert not moved[1].keys() - moved[0].keys()
    flops = [sum(each.flop for each in side if op_of(each) != forward.TEXT) for side in sides]
    assert flops[0] == flops[1] > 0


def test_a_fused_op_moves_what_its_definition_reads_and_writes() -> None:
    given, moved = Given(side=32, rows=7), Tally[str]()
    for each in forward.after(given, "sm_80", SMALL):
        moved[f"{each.op} {each.shape}"] += each.moved
    calls, rows = 4, size_of(meta(2, 256, 64))  # transformer layers, and the rows that go through them
    assert moved["geglu 2x256x512"] == calls * (8 + 4) * rows
    parameters = 2 * calls * size_of(meta(2, 64))
    least = 2 * calls * 4 * rows + parameters  # two sums a layer: x and what is added, the sum and its norm
    assert least <= moved["add_layer_norm 2x256x64"] < 1.1 * least  # beside them mean and deviation of a row


def test_a_limit_is_the_longer_of_moving_and_computing() -> None:
    gpu = roofline.GPU("made up", tflops=100, bandwidth=2.0, family="sm_80")
    launch = Launched("a", "", "", "", 0, moved=4_000_000, flop=0)
    assert gpu.seconds(launch) == pytest.approx(2e-6)
    assert gpu.seconds(Launched("a", "", "", "", 0, moved=4, flop=5 * 10**9)) == pytest.approx(5e-5)


def test_the_bench_gives_each_op_and_their_sum_on_each_gpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "RELEASED", SMALL)
    page, written = tmp_path / "page.md", tmp_path / "rows.jsonl"
    page.write_text(f"before\n{START}\nold\n{END}\nafter\n", encoding="utf-8")
    words = ["roofline", "--size", "128", "--batch", "1", "--shapes", "--page", str(page), "--json", str(written)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "no GPU was there" in said and "not measured" in said
    records = [json.loads(line, parse_constant=pytest.fail) for line in written.read_text("utf-8").splitlines()]
    rows = [record for record in records if record["row"] == "comparison"]
    assert {row["gpu"] for row in rows} == {gpu.name for gpu in roofline.GPUS}
    for gpu in roofline.GPUS:
        mine = {row["op"]: row for row in rows if row["gpu"] == gpu.name and row["unit"] == "ms"}
        for field in ("ours", "peer", "ours_gb", "peer_gb", "ours_launches", "peer_launches", "peer_tflop"):
            summed = sum(row[field] for op, row in mine.items() if op not in roofline.APART)
            assert summed == pytest.approx(mine[roofline.ALL][field])
        assert mine[forward.DIVISIONS]["ratio"] is None and mine[forward.DIVISIONS]["ours"] == 0
        assert math.isclose(mine["geglu"]["ratio"], mine["geglu"]["peer"] / mine["geglu"]["ours"])
        assert mine["geglu"]["ratio"] == pytest.approx(5 / 3, rel=0.01)  # two launches read 3 and write 2; one 2 and 1
    assert any(row["unit"] == "us" and row["op"].startswith("attention") for row in rows)
    assert page.read_text("utf-8") == f"before\n{START}\n{tables(rows, apart=roofline.APART)}{END}\nafter\n"


def test_without_triton_there_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(options: argparse.Namespace) -> Any:
        raise ModuleNotFoundError("No module named 'triton'")

    monkeypatch.setattr(roofline, "_limits", absent)
    notes = list(roofline.results(argparse.Namespace(page=None)))
    assert [type(note).__name__ for note in notes] == ["Note", "Note"]
    assert "No module named 'triton'" in notes[1].line()


def test_guidance_and_the_solver_step_are_not_worth_a_kernel(released: list[Launched]) -> None:
    step = forward.step(Given(), forward.RELEASED)
    assert 0 < len(step) < len(released) / 100
    for gpu in roofline.GPUS:
        assert 0 < sum(map(gpu.seconds, step)) < min(5e-6, sum(map(gpu.seconds, released)) / 1000)


def test_the_page_shows_the_results_that_are_kept() -> None:
    records = [json.loads(line) for line in WRITTEN.read_text("utf-8").splitlines()]
    assert tables(records, apart=roofline.APART) in PAGE.read_text("utf-8")
