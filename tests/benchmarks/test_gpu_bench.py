"""The bench of kernels on a GPU, here without one: a dry run, and what it makes of times and wrong kernels."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from kolors_ops import trials
from kolors_ops.trials import Trial

from benchmarks import gpu
from benchmarks.__main__ import main
from benchmarks.aot.figures import Figures
from benchmarks.on_device import contenders, measuring, planning
from benchmarks.on_device.calls import ODD, of_nets, to_check
from benchmarks.on_device.plot import draw
from benchmarks.on_device.rows import Checked, Time, Timed
from benchmarks.report import Note
from benchmarks.shapes import UNETS

CPU, FACTS = torch.device("cpu"), {"gpu": "made up", "driver": "1"}
CALL = Trial("geglu", (2, 3, 64), calls=7)
DRY = ["gpu", "--dry", "--kind", "geglu", "--dtype", "bfloat16", "--unet", "tiny"]

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="this is what happens without a GPU")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_dry_run_plans_compiles_reports_and_draws_without_a_time(tmp_path: Path) -> None:
    file, plot = tmp_path / "new" / "gpu.jsonl", tmp_path / "plots" / "gpu.png"
    assert main([*DRY, "--json", str(file), "--plot", str(plot)]) == 0
    head, *rows = read(file)
    assert head["versions"].keys() >= {"torch", "triton"}
    of = {kind: [row for row in rows if row["row"] == kind] for kind in ("correctness", "compiled", "comparison")}
    assert all(of.values())
    assert all(row["dry"] is True for found in of.values() for row in found)
    assert {row["distances"] for row in of["correctness"]} == {None}
    assert all(len(row["allowed"]) == 2 and min(row["allowed"]) > 0 for row in of["correctness"])
    assert {row["kernel"] for row in of["compiled"]} == {"geglu_forward", "geglu_backward"}
    assert {row["family"] for row in of["compiled"]} == {"sm_90"}
    assert all(row["registers"] > 8 and row["spill_stores"] == 0 for row in of["compiled"])
    times = ("ours", "ours_low", "ours_high", "peer", "peer_low", "peer_high", "ratio", "ours_off", "peer_off")
    assert {row[name] for row in of["comparison"] for name in times} == {None}
    assert {row["gpu"] for row in of["comparison"]} == {"none: dry"}
    assert {row["direction"] for row in of["comparison"]} == {"forward", "backward"}
    assert {row["peer_name"] for row in of["comparison"]} >= {"torch gelu, mul", "torch.compile"}
    assert {row["case"] for row in of["comparison"]} == {
        f"geglu {'x'.join(map(str, shape))}" for shape in UNETS["tiny"].geglu()
    }
    assert (tmp_path / "plots" / "gpu_bfloat16.png").stat().st_size > 5000


def test_without_a_gpu_it_must_be_dry_on_purpose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "gpu.jsonl"
    kept.write_text("what a GPU gave", encoding="utf-8")
    assert main(["gpu", "--json", str(kept)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "gpu: torch sees no GPU: --dry plans and compiles every launch without one, for the GPUs of --family"
    ]
    assert kept.read_text(encoding="utf-8") == "what a GPU gave"


def test_without_matplotlib_it_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(planning, "compiled", lambda *asked: iter(()))
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main([*DRY, "--plot", str(tmp_path / "gpu.png")]) == 0
    assert "matplotlib is not installed: pip install 'kolors-kernel[plot]'" in capsys.readouterr().out


def test_a_kernel_that_does_not_compile_ends_the_run_with_one_when_all_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(planning, "figures_at", lambda place: "CompilationError: no such thing")
    file = tmp_path / "gpu.jsonl"
    with pytest.raises(SystemExit) as stopped:
        main([*DRY, "--json", str(file)])
    assert stopped.value.code == 1
    assert "does not compile: CompilationError: no such thing" in capsys.readouterr().out
    assert read(file)[-1]["row"] == "comparison" or read(file)[-1]["ours_name"] == "liger"


def test_a_row_that_the_table_lacks_is_a_note_and_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from kolors_ops import table

    monkeypatch.setitem(table._read, "", table.Table(r for r in table.table_at("").rows if r.kernel != "geglu_forward"))
    with pytest.raises(SystemExit):
        main(DRY)
    said = capsys.readouterr()
    assert "the table of launches has no geglu_forward for sm_90, 16 bits" in said.out
    assert "wrong: " in said.err


def instead(kind: str, name: str, *, op: Callable[..., Any]) -> Any:
    """Stand in for the kernels, which refuse a CPU's tensors."""
    if name != "triton":
        return trials.implementation(kind, name)

    class Op:
        __call__ = staticmethod(op)
        refuses = staticmethod(lambda *arguments: "too long" if arguments[0].shape[-1] > 1000 else None)

    return Op()


def test_what_is_wrong_is_said_and_what_is_refused_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    torchs = trials.KINDS["geglu"].torchs
    calls = [CALL, Trial("geglu", (1, 2048))]
    found = {}
    for name, op in (("right", torchs), ("wrong", lambda x: 1.01 * torchs(x))):
        monkeypatch.setattr(measuring, "implementation", partial(instead, op=op))
        found[name] = list(measuring.checked(calls, ["float32", "bfloat16"], FACTS, CPU))
    for name, (single, half, *notes) in found.items():
        assert isinstance(single, Checked) and isinstance(half, Checked)
        assert (single.wrong is None) == (half.wrong is None) == (name == "right")
        assert single.record()["dry"] is False
        assert single.record()["gpu"] == "made up"
        assert [note.reason for note in notes if isinstance(note, Note)] == ["too long"] * 2
    assert "result 0" in str(found["wrong"][0].record()["wrong"])
    assert "of what is allowed" in found["right"][0].line()


def test_times_are_of_the_whole_call_and_of_the_way_back_for_every_contender(monkeypatch: pytest.MonkeyPatch) -> None:
    torchs = trials.KINDS["geglu"].torchs
    monkeypatch.setattr(measuring, "implementation", partial(instead, op=torchs))
    monkeypatch.setattr(torch, "compile", lambda function, **how: function)
    clocked: list[Any] = []

    def clock(work: Callable[[], object]) -> Time:
        clocked.append(work())
        return Time(len(clocked), len(clocked) - 0.5, len(clocked) + 0.5)

    rows = list(measuring.timed({"net": [CALL]}, ["float32"], FACTS, CPU, clock))
    timed = [row for row in rows if isinstance(row, Timed)]
    assert [(row.peer_name, row.direction) for row in timed if row.peer_name != "liger"] == [
        (name, way) for name in ("torch gelu, mul", "torch.compile") for way in ("forward", "backward")
    ]
    assert all(made.requires_grad is False for made in clocked[::2])  # forward
    assert all(len(made) == 1 and made[0].shape == CALL.shape for made in clocked[1::2])  # the gradient of x
    assert {row.ours.median for row in timed if row.ours} == {1, 2}  # measured once, beside everyone
    record = timed[1].record()
    assert (record["ours"], record["peer"], record["ratio"]) == (2, 4, 2.0)
    assert (record["peer_low"], record["peer_high"], record["calls"], record["dry"]) == (3.5, 4.5, 7, False)
    assert 0 <= record["ours_off"] <= 1
    assert "2.00" in timed[1].line()


def test_an_op_without_a_way_back_has_rows_forward_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    call = Trial("quantized_linear", (3, 64, 5), "4 bits by 64 bias")
    monkeypatch.setattr(measuring, "implementation", partial(instead, op=trials.KINDS[call.kind].torchs))
    monkeypatch.setattr(torch, "compile", lambda function, **how: function)
    rows = list(measuring.timed({"net": [call]}, ["float32"], FACTS, CPU, lambda work: Time(1, 1, 1)))
    timed = [row for row in rows if isinstance(row, Timed)]
    assert {row.direction for row in timed} == {"forward"}
    assert [row.peer_name for row in timed] == ["torch widened, linear", "torch.compile"]
    assert all(row.ours_off is not None and row.ours_off <= 1 for row in timed)
    (check,) = measuring.checked([call], ["float32"], FACTS, CPU)
    assert isinstance(check, Checked)
    assert len(check.allowed) == 1
    assert check.wrong is None


def test_a_contender_that_fails_is_a_note_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no kernel image\nand a long trace")

    monkeypatch.setattr(measuring, "implementation", partial(instead, op=trials.KINDS["geglu"].torchs))
    those = [contenders.Contender(name, op, op) for name, op in (("a", failing), ("b", trials.KINDS["geglu"].torchs))]
    monkeypatch.setattr(measuring, "contenders", lambda kind: those)
    note, *rows = measuring.timed({"net": [CALL]}, ["float32"], FACTS, CPU, lambda work: Time(1, 1, 1))
    assert isinstance(note, Note)
    assert (note.ours_name, note.reason) == ("a", "RuntimeError: no kernel image")
    assert [row.peer_name for row in rows if isinstance(row, Timed)] == ["b", "b"]


def test_times_are_drawn_as_bars_with_whiskers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.axes import Axes

    drawn: list[tuple[list[float], list[list[float]]]] = []
    barh = Axes.barh

    def spy(self: Any, at: Any, widths: Any, *rest: Any, **how: Any) -> Any:
        drawn.append((widths, how["xerr"]))
        return barh(self, at, widths, *rest, **how)

    monkeypatch.setattr(Axes, "barh", spy)
    row = partial(Timed, "net", "geglu", "geglu 1x2", "float32", "forward", 1, FACTS)
    draw([row("torch", "1", Time(2, 1, 4), Time(3, 3, 3)), row("liger", "1", Time(2, 1, 4), None)], tmp_path / "a.png")
    assert drawn == [([2], [[1], [2]]), ([3], [[0], [0]])]


def test_every_shape_of_the_nets_and_every_kind_is_asked_for() -> None:
    for net in ("kolors_1024", "kolors_512"):
        found = of_nets([net], gpu.KINDS)[net]
        unet = UNETS[net]
        assert {t.kind for t in found} == set(gpu.KINDS) == {t.kind for t in ODD}
        assert {t.shape for t in found if t.kind == "attention"} == set(unet.attention())
        assert {t.shape for t in found if t.kind == "group_norm_silu"} == set(unet.group_norm_silu())
        assert {t.form for t in found if t.kind == "group_norm_silu"} == {"", "channels_last"}
        assert {t.shape for t in found if t.kind == "geglu"} == set(unet.geglu())
        assert {t.shape for t in found if t.form == "8 bits bias"} == {(rows, 4096, 4608) for rows in (24, 96, 1024)}
    checked = to_check(["kolors_1024"], ["attention"])
    assert {t.shape[0] for t in checked if t.shape[2] >= 1024} == {1}  # float64 of every score is large
    assert {t.shape[0] for t in checked if t.shape[2] < 1024} == {1, 2}
    assert len(checked) == len(set(checked))


def test_kinds_without_kernels_and_kernels_without_calls_are_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = argparse.Namespace(components={("geglu", "triton"): 1, ("attention", "sdpa"): 1, ("novel", "triton"): 1})
    monkeypatch.setattr(gpu, "discover", lambda: registry)
    found = list(gpu._kinds(["geglu", "attention"]))
    assert [each for each in found if isinstance(each, str)] == ["geglu"]
    notes = [each for each in found if isinstance(each, Note)]
    assert {note.case: note.reason for note in notes} == {
        "attention": "there is no such component",
        "novel": "this bench knows no calls of this kind of op",
    }


def test_an_absent_peer_is_a_reason_and_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "find_spec", lambda name: None)
    assert contenders.contenders("geglu")[-1] == "liger-kernel is not installed"
    assert contenders.contenders("rotary")[-1] == "liger-kernel has none of this form"


def test_figures_of_a_compiled_kernel_are_in_its_row() -> None:
    assert {"registers", "spill_stores", "spill_loads", "shared", "ctas"} <= set(Figures.__dataclass_fields__)
