"""Schedules held against the first of them, in figures and as Figure 5 (2.2.2)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from kolors_kernel.graph import Graph, step
from kolors_kernel.protocols import NoiseSchedule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Schedules: TypeAlias = Mapping[str, NoiseSchedule]


@dataclass(frozen=True)
class Measures:
    """The figures of one schedule.

    Gaps are in alpha_bar, over the timesteps that it shares with the first schedule. `terminal_snr_db` is None where
    the schedule ends in pure noise.
    """

    steps: int
    terminal_alpha_bar: float
    terminal_snr: float
    terminal_snr_db: float | None
    largest_gap: float
    largest_gap_at: int


Comparison: TypeAlias = Mapping[str, Measures]


@step(writes="comparison")
def measure(schedules: Schedules) -> Comparison:
    """Measure where each schedule ends and how far it strays from the first one."""
    first = next(iter(schedules.values())).alpha_bar
    measures = {}
    for name, schedule in schedules.items():
        alpha_bar = schedule.alpha_bar
        shared = min(len(first), len(alpha_bar))
        gaps = (alpha_bar[:shared] - first[:shared]).abs()
        last = float(alpha_bar[-1])
        ratio = last / (1 - last)
        measures[name] = Measures(
            steps=len(alpha_bar),
            terminal_alpha_bar=last,
            terminal_snr=ratio,
            terminal_snr_db=10 * math.log10(ratio) if ratio > 0 else None,
            largest_gap=float(gaps.max()),
            largest_gap_at=int(gaps.argmax()),
        )
    return measures


@step(writes="figure")
def draw(schedules: Schedules, comparison: Comparison) -> Figure:
    """Draw the schedules over their timesteps, the first one dashed on top."""
    from kolors_schedules.figure import draw_curves

    return draw_curves(schedules, comparison)


def comparison_graph() -> Graph:
    """Return the graph schedules -> comparison, figure."""
    return Graph([measure, draw], inputs=[], outputs=["comparison", "figure"], parts=["schedules"])


class ComparisonJob:
    """Writes schedules.json and schedules.png to `out`."""

    def __init__(self, schedules: Schedules, *, graphs: Mapping[str, Graph], out: Path) -> None:
        self.schedules = schedules
        self.graphs = graphs
        self.out = out

    def run(self) -> Mapping[str, float]:
        """Write both files; return each schedule's terminal ratio and largest gap by its name."""
        comparison, figure = self.graphs["compare"].run(schedules=self.schedules)
        self.out.mkdir(parents=True, exist_ok=True)
        as_json = {name: asdict(measures) for name, measures in comparison.items()}
        text = json.dumps(as_json, indent=2, ensure_ascii=False)
        (self.out / "schedules.json").write_text(text + "\n", encoding="utf-8")
        figure.savefig(self.out / "schedules.png")
        return {
            f"{name}: {title}": value
            for name, measures in comparison.items()
            for title, value in (("terminal SNR", measures.terminal_snr), ("largest gap", measures.largest_gap))
        }
