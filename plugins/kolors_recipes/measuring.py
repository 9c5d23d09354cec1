"""What the phases of a run took: seconds, and the most memory held in each."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_GIB = 2**30


@dataclass
class Phase:
    """Seconds in all, and the most memory of any time it was entered, in GiB; `gpu` is None without one."""

    seconds: float = 0.0
    memory: float = 0.0
    gpu: float | None = None


class Meter:
    """Measures named phases, which may be entered again and do not overlap.

    `memory` says what the figures are: on Linux the peak of the resident memory within the phase, elsewhere that of the
    process until its end.
    """

    def __init__(self, device: str) -> None:
        self._cuda = torch.device(device) if device.startswith("cuda") else None
        self.phases: dict[str, Phase] = {}
        self.memory = (
            "most resident memory within the phase" if _reset_peak() else "most resident memory since the start"
        )

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure what happens inside."""
        _reset_peak()
        if self._cuda is not None:
            torch.cuda.reset_peak_memory_stats(self._cuda)
        began = time.perf_counter()
        try:
            yield
        finally:
            if self._cuda is not None:
                torch.cuda.synchronize(self._cuda)
            phase = self.phases.setdefault(name, Phase())
            phase.seconds += time.perf_counter() - began
            phase.memory = max(phase.memory, _peak() / _GIB)
            if self._cuda is not None:
                phase.gpu = max(phase.gpu or 0.0, torch.cuda.max_memory_allocated(self._cuda) / _GIB)

    def lines(self) -> list[str]:
        """Return a line of text for each phase, in the order they were first entered."""
        width = max(map(len, self.phases), default=0)
        return [
            f"{name:<{width}}  {phase.seconds:8.1f} s  {phase.memory:6.2f} GiB"
            + ("" if phase.gpu is None else f"  {phase.gpu:6.2f} GiB on the GPU")
            for name, phase in self.phases.items()
        ]

    def report(self) -> Mapping[str, Mapping[str, float]]:
        """Return seconds, memory_gib and on a GPU gpu_memory_gib by phase, for a report."""
        return {
            name: {"seconds": round(phase.seconds, 3), "memory_gib": round(phase.memory, 3)}
            | ({} if phase.gpu is None else {"gpu_memory_gib": round(phase.gpu, 3)})
            for name, phase in self.phases.items()
        }


def _reset_peak() -> bool:
    """Have Linux count the peak of the resident memory anew; False where it cannot."""
    try:
        _CLEAR.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _peak() -> int:
    """Return the most bytes that were resident: since the last reset where there was one, else ever."""
    try:
        lines = _STATUS.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
