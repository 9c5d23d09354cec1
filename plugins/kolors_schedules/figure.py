"""The picture of Figure 5: schedules drawn over each other (2.2.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from kolors_schedules.compare import Comparison, Schedules


def draw_curves(schedules: Schedules, comparison: Comparison) -> Figure:
    """Return alpha_bar and the signal-to-noise ratio in dB over the timesteps, side by side.

    1600 x 640 pixels. The first schedule is dashed and drawn last, so that it is seen where another one covers it.
    """
    figure = Figure(figsize=(16, 6.4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for place, (name, schedule) in enumerate(schedules.items()):
        is_first = place == 0
        style = {"color": "black", "linestyle": "--", "zorder": 10} if is_first else {"color": f"C{place - 1}"}
        decibel = comparison[name].terminal_snr_db
        ends = "pure noise" if decibel is None else f"{decibel:.1f} dB"
        left.plot(schedule.alpha_bar.numpy(), label=name, **style)
        alpha_bar = schedule.alpha_bar[schedule.alpha_bar > 0]  # pure noise is at minus infinity
        right.plot((10 * (alpha_bar / (1 - alpha_bar)).log10()).numpy(), label=f"{name}: {ends}", **style)
    left.set(xlabel="timestep", ylabel="alpha_bar", title="share of the picture's variance")
    right.set(xlabel="timestep", ylabel="dB", ylim=(-45, 35), title="signal-to-noise ratio, and where it ends")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    return figure
