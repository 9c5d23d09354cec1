from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import benches, main
from benchmarks.aot import beside, errors, ours
from benchmarks.aot.figures import Access, Figures
from benchmarks.aot.launches import Planned, Unplanned, op_modules, planned
from benchmarks.aot.peers import inductor, shapes
from benchmarks.aot.tables import tables
from benchmarks.report import Note, Row
from benchmarks.shapes import UNETS

pytest.importorskip("triton")
PROMISED = {"op", "shape", "dtype", "arch", "registers", "spill_stores", "spill_loads", "shared", "ctas"}
PROMISED |= {"ctas_stated", "mma", "wide_loads", "wide_stores", "instructions"}
PLAIN = Figures(
    registers=32,
    spill_stores=0,
    spill_loads=0,
    local=0,
    shared=0,
    threads=128,
    ctas=16,
    most_threads=2048,
    instructions=100,
    mma=0,
    dots_of_16_bits=0,
    loads=Access(4, 4, 64, 0),
    stores=Access(3, 1, 22, 1),
)


def test_it_is_a_bench() -> None:
    assert "aot" in benches()


@pytest.mark.slow
def test_every_launch_of_an_op_is_a_row_with_the_promised_figures(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    asked = ["--part", "ours", "--op", "geglu", "--dtype", "bfloat16", "--family", "sm_80", "--processes", "1"]
    assert main(["aot", *asked, "--json", str(file)]) == 0
    _, *rows = (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())
    assert [(row["shape"], row["ours_name"]) for row in rows] == [
        ("4096x2560", "geglu_forward"),
        ("4096x2560 backward", "geglu_backward"),
        ("1024x5120", "geglu_forward"),
        ("1024x5120 backward", "geglu_backward"),
    ]
    for row in rows:
        assert row.keys() >= PROMISED
        assert (row["ours"], row["peer"]) == (row["ctas"], row["ctas_stated"])
        assert (row["spill_stores"], row["wide_loads"], row["wide_stores"], row["mma"]) == (0, 1.0, 1.0, 0)


def test_every_op_that_has_samples_is_found_and_every_sample_has_its_rows() -> None:
    modules = op_modules()
    assert {"kolors_ops.geglu.op", "kolors_ops.group_norm_silu.op"} <= set(modules)
    found = list(planned(modules, ["bfloat16", "float32"]))
    assert not [each for each in found if isinstance(each, Unplanned)]
    assert {each.op for each in found if isinstance(each, Planned)} == {name.split(".")[1] for name in modules}


def test_peers_are_compiled_at_every_group_norm_and_attention_of_the_unet() -> None:
    kolors = UNETS["kolors_1024"]
    assert {(n.batch, n.channels, n.side, n.side) for n in shapes.norms()} == set(kolors.group_norm_silu())
    assert {(a.batch, a.heads, a.rows, a.keys, a.width) for a in shapes.attentions()} == set(kolors.attention())


@pytest.fixture
def without_compiling(monkeypatch: pytest.MonkeyPatch) -> list[Planned]:
    """Compiling makes plain figures of ours, and of others figures with spills; what was to be compiled is kept."""
    asked: list[Planned] = []

    def compiled(launches: Iterable[Planned], **how: Any) -> Iterator[tuple[Planned, Figures | str]]:
        for each in launches:
            asked.append(each)
            ours = each.place.module == beside.OURS
            yield each, PLAIN if ours else replace(PLAIN, ctas=4, spill_stores=8, local=8)

    monkeypatch.setattr(beside, "compiled", compiled)
    monkeypatch.setattr(inductor, "refusal", lambda: "it said no")
    return asked


OPTIONS = Namespace(peer_dtype=["bfloat16"], peer_family=["sm_80"], cache="", processes=1, limit=1.0)


def test_a_peer_that_is_not_installed_is_a_note_that_says_how_to_install_it(
    without_compiling: list[Planned], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("liger_kernel", "flag_gems"):
        monkeypatch.setitem(sys.modules, name, None)
    notes = [each for each in beside.results(OPTIONS) if isinstance(each, Note)]
    reasons = {note.ours_name: note.reason for note in notes}
    assert reasons == {
        "beside Inductor": "it said no",
        "beside Liger-Kernel": "liger_kernel is not installed: pip install --no-deps liger-kernel==0.8.5",
        "beside FlagGems": "flag_gems is not installed: pip install --no-deps flag-gems==5.0.2",
    }


def test_ours_stand_beside_peers_by_how_full_the_gpu_gets(without_compiling: list[Planned]) -> None:
    rows = {each.case: each for each in beside.results(OPTIONS) if isinstance(each, Row)}
    row = rows["4096x4096 backward bfloat16 sm_80"].record()
    programs = 4096 // 128 * 20  # fewer than fit
    assert row["ours"] == pytest.approx(100 * programs * 128 / (108 * 2048))
    assert row["peer"] == 25.0
    assert (row["ours_spill_stores"], row["peer_spill_stores"]) == (0, 16)  # of both its kernels
    assert {each.place.family for each in without_compiling} == {"sm_80"}
    few = next(each for each in without_compiling if each.kernel == "tutorial_backward")
    held = beside.whole([(replace(few, programs=108), PLAIN)])
    assert (held.programs, held.fill) == (108, 108 * 128 / (108 * 2048))  # one program for each multiprocessor


def test_kernels_that_see_a_part_of_the_picture_do_not_count_for_how_full_it_gets() -> None:
    found = [each for each in planned([beside.OURS], ["bfloat16"], ["sm_80"]) if isinstance(each, Planned)]
    forward = [each for each in found if each.shape == "320@128x128 forward"]
    assert [each.kernel for each in forward] == ["group_norm_sums", "group_norm_combine", "group_norm_apply"]
    made = [(each, replace(PLAIN, registers=255 if each.kernel == "group_norm_combine" else 32)) for each in forward]
    taken = beside.whole(made)
    assert (taken.registers, taken.kernels, taken.fill) == (32, 3, 1.0)


def test_errors_are_rows_and_reasons_notes() -> None:
    found = {"triton": 0.5, "torch": 0.25, "A": 2.0, "B": float("nan")}
    said = {"case": "a case", "dtype": "bfloat16", "errors": found, "reasons": {"C": "not installed"}}
    torchs, peers, nothing = [
        each for each in errors._rows(said) if not isinstance(each, Note) or each.ours_name == "B"
    ]
    assert isinstance(torchs, Row) and isinstance(peers, Row) and isinstance(nothing, Note)
    assert (torchs.ratio, peers.ratio, peers.unit, peers.case) == (0.5, 4.0, "steps", "a case bfloat16")
    assert "NaN" in nothing.reason
    assert not [each for each in errors._rows({**said, "errors": {"A": 1.0}}) if isinstance(each, Row)]


@pytest.mark.slow
def test_the_attention_in_the_manner_of_the_tutorial_is_right() -> None:
    program = (
        "import torch, json; from benchmarks.aot import interpreted; from benchmarks.aot.interpreting import mend;"
        "mend(); print(json.dumps(list(interpreted._attention('attention', torch.float32))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    for case in json.loads(done.stdout):
        found = case["errors"]
        assert found["tutorial"] <= 2 * found["torch"] + 1
        assert found["triton"] <= 2 * found["torch"] + 1


def test_the_tables_of_the_docs_come_from_the_records(without_compiling: list[Planned]) -> None:
    records = [each.record() for each in beside.results(OPTIONS)]
    launch = next(each for each in planned(["kolors_ops.geglu.op"], ["bfloat16"], ["sm_80"]))
    assert isinstance(launch, Planned)
    found = [replace(PLAIN, registers=40), replace(PLAIN, ctas=2, spill_stores=8, mma=3)]
    records += [ours._row(launch, figures).record() for figures in found]
    said = {"case": "a case", "dtype": "bfloat16", "errors": {"triton": 0.5, "torch": 0.25}, "reasons": {}}
    records += [each.record() for each in errors._rows(said)]
    text = tables([json.dumps(record) for record in records])
    assert "| bfloat16 | sm_80 | wide loads | wide stores |" in text
    assert "| `geglu_forward` | 40, 2, mma 3, **spills 8** | 100% | 89% |" in text
    assert "| 4096x4096 backward | 32, 16, 37% |" in text
    assert "32, 4, 25%, **spills 16/0** |" in text
    assert "| a case bfloat16 | 0.5 | 0.25 |" in text
