"""The recipe that draws Figure 5."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from kolors_schedules.config import CompareSchedules, LogSNRShift, ScaledLinear, ZeroTerminalSNR
from PIL import Image

from kolors_kernel import BuildContext, load_recipe
from kolors_kernel.errors import MissingDependency


def test_figure5_is_drawn_and_measured(tmp_path: Path) -> None:
    figures = load_recipe("figure5").build(BuildContext(out=tmp_path)).run()
    assert figures["Kolors as released, 1100: terminal SNR"] == pytest.approx(0.0011840561, rel=1e-7)
    assert figures["Kolors as released, 1100: largest gap"] == pytest.approx(0.0025779, abs=5e-8)
    assert figures["extended exactly, 1100: largest gap"] == 0

    measured = json.loads((tmp_path / "schedules.json").read_text(encoding="utf-8"))
    assert measured["Kolors as released, 1100"]["largest_gap_at"] == 505
    assert measured["base, 1000 steps"]["terminal_snr_db"] == pytest.approx(-23.296, abs=5e-4)
    assert measured["zero terminal SNR"]["terminal_snr_db"] is None
    assert measured["zero terminal SNR"]["terminal_alpha_bar"] == 0

    with Image.open(tmp_path / "schedules.png") as picture:
        assert picture.size == (1600, 640)
        colours = picture.convert("RGB").getcolors(maxcolors=1 << 20)
    assert colours is not None
    assert len(colours) > 100  # curves of many colours on it, not an empty frame


def test_the_first_schedule_is_what_the_others_are_held_against(tmp_path: Path) -> None:
    schedules = {"shifted": LogSNRShift(), "base": ScaledLinear(), "zero": ZeroTerminalSNR()}
    figures = CompareSchedules(schedules=schedules).build(BuildContext(out=tmp_path / "new")).run()
    assert figures["shifted: largest gap"] == 0
    assert figures["base: largest gap"] == pytest.approx(0.3333, abs=5e-5)


def test_one_schedule_alone_is_no_comparison() -> None:
    with pytest.raises(ValueError, match="at least 2 items"):
        CompareSchedules(schedules={"base": ScaledLinear()})


def test_the_graph_is_known_without_building() -> None:
    graph = CompareSchedules.tiny().graphs()["compare"]
    assert [step.name for step in graph.steps] == ["measure", "draw"]
    assert graph.needs == ("schedules",)


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    # An entry of None makes the import fail as if the package were not there.
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependency, match=r"pip install 'kolors-kernel\[plot\]'"):
        CompareSchedules.tiny().build(BuildContext())
