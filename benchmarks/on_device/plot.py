"""Pictures of what was timed: a panel for each kind of op forward and backward, a file for each dtype."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.on_device.contenders import OURS
from benchmarks.on_device.rows import Time, Timed

NOTHING = "dry: nothing was launched, so there are no times"


def draw(rows: Sequence[Timed], path: Path) -> list[Path]:
    """Draw the times of every dtype into a file named after `path` and return the files.

    Raises ModuleNotFoundError without matplotlib.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = []
    for dtype in dict.fromkeys(row.dtype for row in rows):
        those = [row for row in rows if row.dtype == dtype]
        kinds, ways = (list(dict.fromkeys(getattr(row, of) for row in those)) for of in ("kind", "direction"))
        heights = [1.5 + 0.4 * len({(row.net, row.case) for row in those if row.kind == kind}) for kind in kinds]
        figure = Figure(figsize=(8 * len(ways), sum(heights)), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(len(kinds), len(ways), squeeze=False, height_ratios=heights)
        for line, kind in zip(panels, kinds, strict=True):
            for panel, way in zip(line, ways, strict=True):
                _panel(panel, [row for row in those if (row.kind, row.direction) == (kind, way)])
                panel.set_title(f"{kind} {way}")
        dry = any(row.ours is None for row in those)
        figure.suptitle(f"{dtype}, {those[0].device['gpu']}{f' ({NOTHING})' if dry else ''}")
        drawn.append(path.with_name(f"{path.stem}_{dtype}{path.suffix or '.png'}"))
        figure.savefig(drawn[-1])
    return drawn


def _panel(panel: Any, rows: Sequence[Timed]) -> None:
    """Draw a group of bars for each case, ours first; from a fifth to four fifths of the calls is a whisker."""
    if not rows:  # of an op without a way back
        panel.set_visible(False)
        return
    times: dict[str, dict[str, Time | None]] = {OURS: {}}
    for row in rows:
        case = f"{row.net} {row.case.removeprefix(row.kind).strip()}"
        times[OURS][case] = row.ours
        times.setdefault(row.peer_name, {})[case] = row.peer
    cases = list(times[OURS])
    step = 0.8 / len(times)
    for number, (name, found) in enumerate(times.items()):
        known = [(at, time) for at, case in enumerate(cases) if (time := found.get(case)) is not None]
        if known:
            panel.barh(
                [at + number * step for at, _ in known],
                [time.median for _, time in known],
                step,
                xerr=[[t.median - t.low for _, t in known], [t.high - t.median for _, t in known]],
                label=name,
            )
    panel.set_yticks([at + 0.3 for at in range(len(cases))], cases, fontsize=7)
    panel.set_ylim(len(cases), -0.3)
    panel.set_xlabel("milliseconds")
    if panel.containers:
        panel.legend(fontsize=7)
    else:
        panel.set_xticks([])
        panel.text(0.5, 0.5, NOTHING, ha="center", transform=panel.transAxes)
