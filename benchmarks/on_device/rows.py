"""What the bench of kernels reports. In a dry run nothing was launched: then times and errors are null."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.aot.figures import Figures

BENCH = "gpu"


@dataclass(frozen=True)
class Time:
    """The median time of a call on the device, and the times that a fifth of the calls fell below and above, in ms."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Checked:
    """Whether one call was right, forward and backward: how far off each result is and may be; `wrong` says which."""

    case: str
    dtype: str
    device: Mapping[str, str]
    distances: Sequence[float] | None
    allowed: Sequence[float]
    wrong: str | None = None

    def record(self) -> dict[str, Any]:
        """Return the row as one flat JSON object."""
        named = {name: value for name, value in vars(self).items() if name != "device"}
        return {"row": "correctness", "bench": BENCH, "dry": self.distances is None, **named, **self.device}

    def line(self) -> str:
        """Return the row as one line of the table."""
        if self.distances is None:
            said = "dry: not launched"
        else:
            share = max((d / a for d, a in zip(self.distances, self.allowed, strict=True) if a), default=0.0)
            said = f"{self.wrong or 'right'}, {share:.0%} of what is allowed"
        return f"{self.case:<58} {self.dtype:<24} {said}"


@dataclass(frozen=True)
class Compiled:
    """One kernel of the plan for a call, compiled for a family of GPUs that need not be there."""

    case: str
    dtype: str
    kernel: str
    family: str
    found: Figures | str
    """What its binary takes, or why it does not compile."""

    @property
    def wrong(self) -> str | None:
        """Say why it does not compile, or return None."""
        return self.found if isinstance(self.found, str) else None

    def record(self) -> dict[str, Any]:
        """Return the row as one flat JSON object."""
        named = {"case": self.case, "dtype": self.dtype, "kernel": self.kernel, "family": self.family}
        figures = {} if isinstance(self.found, str) else {name: getattr(self.found, name) for name in _FIGURES}
        return {"row": "compiled", "bench": BENCH, "dry": True, **named, **figures, "wrong": self.wrong}

    def line(self) -> str:
        """Return the row as one line of the table."""
        if isinstance(self.found, str):
            said = f"does not compile: {self.found}"
        else:
            spilled = self.found.spill_stores + self.found.spill_loads
            said = f"{self.found.registers} registers, {spilled} spilled, {self.found.ctas} programs"
        return f"{self.case:<58} {self.kernel:<24} {self.family} {self.dtype}: {said}"


_FIGURES = ("registers", "spill_stores", "spill_loads", "shared", "threads", "ctas")


@dataclass(frozen=True)
class Timed:
    """One call by ours and by a contender. `off` is the largest distance from float64, of what is allowed.

    `calls` is how often a forward of the net makes it.
    """

    net: str
    kind: str
    case: str
    dtype: str
    direction: str
    calls: int
    device: Mapping[str, str]
    peer_name: str
    peer_version: str
    ours: Time | None = None
    peer: Time | None = None
    ours_off: float | None = None
    peer_off: float | None = None

    @property
    def ratio(self) -> float | None:
        """How many times as long the contender takes."""
        return self.peer.median / self.ours.median if self.ours and self.peer else None

    def record(self) -> dict[str, Any]:
        """Return the row as one flat JSON object."""
        named = {name: value for name, value in vars(self).items() if name not in ("ours", "peer", "device")}
        times = {
            f"{who}{end}": time and getattr(time, part)
            for who, time in (("ours", self.ours), ("peer", self.peer))
            for end, part in (("", "median"), ("_low", "low"), ("_high", "high"))
        }
        head = {"row": "comparison", "bench": BENCH, "dry": self.ours is None, "ours_name": "triton"}
        return {**head, **named, **times, "unit": "ms", "ratio": self.ratio, **self.device}

    def line(self) -> str:
        """Return the row as one line of the table."""
        case = f"{self.net} {self.case} {self.dtype} {self.direction}"
        if self.ours is None or self.peer is None:
            figures = f"{'dry':>10} {'dry':>10} {'ms':<6} {'':>7} {'':>8}"
        else:
            off = "" if self.ours_off is None else f"{self.ours_off:.0%}"
            figures = f"{self.ours.median:>10.4f} {self.peer.median:>10.4f} {'ms':<6} {self.ratio:>7.2f} {off:>8}"
        return f"{case:<58} {'triton':<24} {figures}  {self.peer_name}"
