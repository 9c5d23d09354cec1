from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from benchmarks import measure, ops
from benchmarks.__main__ import benches, main
from benchmarks.measure import Sample, compare
from benchmarks.report import Note, header, timed_row
from benchmarks.shapes import TEXTS, UNETS, UNetShape
from kolors_kernel import discover

PROMISED = {"bench", "case", "ours", "peer_name", "peer", "unit", "ratio", "error"}
SMALLEST = UNetShape((32, 32), (0, 1), head_width=8, side=4, text_tokens=5, batch=1)


def sampler(*seconds: float) -> Any:
    readings = cycle(seconds)
    return lambda: Sample(cpu=(now := next(readings)), wall=2 * now)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_ratio_is_the_median_of_the_rounds_and_above_one_when_ours_took_less() -> None:
    measured = compare(sampler(9.0, 1.0, 2.0, 1.0), sampler(9.0, 3.0, 2.0, 5.0), rounds=3)
    assert measured.ratio == 3.0
    assert measured.ours == Sample(1.0, 2.0)
    assert measured.peer == Sample(3.0, 6.0)
    assert compare(sampler(4.0), sampler(1.0), rounds=2).ratio == 0.25


def test_rounds_are_interleaved_and_the_first_pair_does_not_count() -> None:
    order: list[str] = []

    def named(name: str) -> Any:
        def sample() -> Sample:
            order.append(name)
            return Sample(1.0, 1.0)

        return sample

    assert compare(named("o"), named("p"), rounds=4).rounds == 4
    assert "".join(order) == "op" + "op" + "po" + "op" + "po"


def test_no_round_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one round, not 0"):
        compare(sampler(1.0), sampler(1.0), rounds=0)


def test_a_sample_of_short_calls_is_the_average_of_many() -> None:
    count = 0

    def work() -> None:
        nonlocal count
        count += 1
        sum(range(2000))

    sample = measure.calls(work, at_least=0.01)
    count = 0
    taken = sample()
    assert count > 5
    assert 0 < taken.cpu < 0.01


def test_a_sample_is_long_enough_whatever_the_first_readings_were(monkeypatch: pytest.MonkeyPatch) -> None:
    now, made = 0.0, 0

    def work() -> None:
        nonlocal now, made
        made += 1
        held_up, standing = made == 2, 5 <= made < 9  # as where the host takes a virtual machine's time
        now += 0.5 if held_up else 0.0 if standing else 0.001

    monkeypatch.setattr("time.process_time", lambda: now)
    sample = measure.calls(work, at_least=0.02)
    samples = [sample() for _ in range(4)]
    assert made >= 40
    assert all(0.0005 < taken.cpu <= 0.001 + 1e-9 for taken in samples)


def test_a_sample_takes_the_time_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def work() -> None:
        nonlocal now
        now += 0.001

    monkeypatch.setattr("time.process_time", lambda: now)
    sample = measure.calls(work, at_least=0.02)
    before = now
    assert sample().cpu == pytest.approx(0.001)
    assert 0.02 <= now - before < 0.04


def test_a_process_that_fails_is_an_error_with_what_it_said() -> None:
    sample = measure.processes([sys.executable, "-S", "-c", "raise SystemExit('no such luck')"], environment={})
    with pytest.raises(RuntimeError, match="exit code 1: no such luck"):
        sample()


def test_the_time_of_a_process_is_its_own_and_not_ours() -> None:
    busy, idle = (
        measure.processes([sys.executable, "-S", "-c", program], environment={})()
        for program in ("sum(range(20_000_000))", "pass")
    )
    assert busy.cpu > 2 * idle.cpu  # in this process nothing was computed for either
    assert busy.wall > 0


def test_a_row_has_the_promised_fields_and_the_header_says_where() -> None:
    measured = compare(sampler(0.002), sampler(0.003), rounds=1)
    row = timed_row("ops", "a case", names=("us", "them"), measured=measured, error=1e-7, extra={"calls": 3}).record()
    assert row.keys() >= PROMISED
    assert row["ratio"] == pytest.approx(row["peer"] / row["ours"]) == pytest.approx(1.5)
    assert (row["ours"], row["unit"], row["calls"]) == (2.0, "cpu ms", 3)
    head = header("ops", ["ops", "--quick"], threads=1)
    assert head["machine"].keys() >= {"cpu", "cores", "threads", "load"}
    assert head["versions"].keys() >= {"python", "torch", "numpy", "kolors-kernel"}
    assert head["command"] == "python -m benchmarks ops --quick"


def test_the_benches_are_the_modules_that_offer_results() -> None:
    found = benches()
    assert found.keys() >= {"ops", "kernel"}
    assert not found.keys() & {"report", "measure", "shapes"}


def test_an_unknown_bench_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["opps"])
    assert stopped.value.code == 2
    assert "'ops'" in capsys.readouterr().err


def test_the_shapes_of_kolors_are_those_counted_on_its_module_tree() -> None:
    # Counted op by op on meta tensors of the released U-Net's module tree, 1024 x 1024 pixels, a batch of 2.
    kolors = UNETS["kolors_1024"]
    assert kolors.attention() == {
        (2, 10, 4096, 4096, 64): 10,
        (2, 10, 4096, 256, 64): 10,
        (2, 20, 1024, 1024, 64): 60,
        (2, 20, 1024, 256, 64): 60,
    }
    assert kolors.geglu() == {(2, 4096, 5120): 10, (2, 1024, 10240): 60}
    norms = kolors.group_norm_silu()
    assert norms.total() == 46 - 11  # the norms before the 11 transformers have no SiLU
    assert {c: n for (_, c, side, _), n in norms.items() if side == 128} == {320: 8, 640: 2, 960: 1}
    assert {c: n for (_, c, side, _), n in norms.items() if side == 64} == {320: 1, 640: 6, 960: 1, 1280: 1, 1920: 1}
    assert {c: n for (_, c, side, _), n in norms.items() if side == 32} == {640: 1, 1280: 10, 1920: 1, 2560: 2}


def test_the_layers_of_chatglm3_are_those_of_its_configuration() -> None:
    # 32 heads of 128 with 2 of keys and 2 of values; a gate and a value of 13696 each.
    assert TEXTS["kolors_1024"].linear() == {
        (128, 4096, 4608, True): 28,
        (128, 4096, 4096, False): 28,
        (128, 4096, 27392, False): 28,
        (128, 13696, 4096, False): 28,
    }


def test_a_layer_of_integers_is_benched_beside_the_same_weight_in_floating_point_and_not_backward(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ops, "AT_LEAST", 1e-4)
    monkeypatch.setattr(ops, "kinds", lambda of=ops.kinds: {"quantized_linear": of()["quantized_linear"]})
    file = tmp_path / "ops.jsonl"
    main(["ops", "--quick", "--json", str(file)])
    rows = [row for row in read(file)[1:] if row["ours_name"] == "reference"]
    assert len(rows) == 8  # four layers, of 8 bits and of 4
    assert {row["case"].split(" ", 3)[3] for row in rows} == {
        f"{bits} bits{bias} float32" for bits in (8, 4) for bias in ("", " bias")
    }
    assert {row["peer_name"] for row in rows} == {"torch linear, dequantised"}
    assert all(0 < row["error_float64"] < 1e-6 and row["error"] < 1e-6 for row in rows)
    main(["ops", "--quick", "--backward", "--json", str(file)])
    assert {row.get("reason") for row in read(file)[1:]} == {"there are gradients for nothing in it"}


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed distribution with a GEGLU that is right for short rows and refuses long ones."""
    (tmp_path / "kolors_stranger.py").write_text(
        dedent(
            '''
            """A stranger's op."""
            from typing import Literal

            from kolors_kernel import hookimpl
            from kolors_kernel.kinds import GEGLUConfig


            class Ours:
                def __call__(self, x):
                    import torch
                    value, gate = x.chunk(2, dim=-1)
                    return value * gate * torch.special.ndtr(gate) * 1.001

                def refuses(self, x):
                    return f"rows of {x.shape[-1]} are long" if x.shape[-1] > 600 else None


            class Strange(GEGLUConfig):
                """GEGLU by the normal distribution, a little off."""

                type: Literal["strange"] = "strange"

                def build(self, ctx):
                    return Ours()


            @hookimpl
            def kolors_components():
                return [Strange]
            '''
        )
    )
    info = tmp_path / "kolors_stranger-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kolors-stranger\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[kolors.v1]\nstranger = kolors_stranger\n")
    monkeypatch.syspath_prepend(tmp_path)
    discover.cache_clear()
    yield
    discover.cache_clear()
    sys.modules.pop("kolors_stranger", None)


@pytest.mark.usefixtures("stranger")
def test_a_strangers_op_is_benched_beside_the_peer_without_a_line_about_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(UNETS, "tiny", SMALLEST)
    monkeypatch.setattr(ops, "AT_LEAST", 1e-4)
    file = tmp_path / "new" / "ops.jsonl"
    assert main(["ops", "--quick", "--json", str(file)]) == 0
    head, *rows = read(file)
    assert head["row"] == "header"
    assert head["machine"]["threads"] == 1
    found = {row["ours_name"]: row for row in rows if row["case"].startswith("geglu tiny 1x4x256")}
    assert found.keys() >= {"strange", "reference", "torch", "auto"}
    assert found["strange"]["error"] == pytest.approx(1e-3, rel=1e-2)
    assert found["torch"]["error"] == 0
    notes = [row for row in rows if row["row"] == "note"]
    assert {(row["ours_name"], row["reason"].split(";")[0]) for row in notes} == {
        ("triton", "the tensors are on a CPU, not on a GPU")
    }
    for row in (row for row in rows if row not in notes):
        assert row.keys() >= PROMISED
        assert row["ratio"] > 0
        assert row["rounds"] == 3
        assert (row["ours_name"] == "strange") == (row["error"] > 1e-5)
        assert row["peer_error_float64"] < 1e-5
    assert {row["case"].split()[0] for row in rows} == ops.kinds().keys()
    assert len(capsys.readouterr().out.splitlines()) == len(rows) + 4


@pytest.mark.usefixtures("stranger")
def test_a_case_that_an_op_refuses_is_a_note_with_its_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(UNETS, "tiny", UNetShape((96, 96), (0, 1), head_width=96, side=2, text_tokens=3, batch=1))
    monkeypatch.setattr(ops, "AT_LEAST", 1e-4)
    monkeypatch.setattr(ops, "kinds", lambda of=ops.kinds: {"geglu": of()["geglu"]})
    file = tmp_path / "ops.jsonl"
    main(["ops", "--quick", "--backward", "--json", str(file)])
    rows = {row["ours_name"]: row for row in read(file)[1:]}
    assert rows["strange"]["row"] == "note"
    assert rows["strange"]["reason"] == "rows of 768 are long"
    assert rows["reference"]["row"] == "comparison"
    assert rows["reference"]["case"].endswith("float32 backward")


def test_a_note_takes_its_place_in_the_table() -> None:
    assert "not measured: no GPU" in Note("ops", "a case", "triton", "no GPU").line()
