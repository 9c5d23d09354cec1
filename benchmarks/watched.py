"""A process run to its end while its memory is looked at: the most it held, in all and phase by phase."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread

PHASE = "phase: "
"""What a line of a watched process begins with that says what it does from now on."""
_EVERY = 0.01  # seconds between two looks; the kernel keeps the peak between them
_GIB = 2**20  # in the kB of /proc


class Stopped(Exception):
    """A watched process that failed, or was ended for the machine's sake; the text says which and why."""


@dataclass
class Usage:
    """What a process took: seconds, and GiB. `peak` is of resident memory; `anonymous` of what no file backs."""

    seconds: float = 0.0
    peak: float = 0.0
    anonymous: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)
    """The most resident memory that was seen in each phase."""


def watch(command: Sequence[str], environment: Mapping[str, str], *, spare: float) -> Usage:
    """Run a process to its end and return what it took.

    Raises Stopped when it fails, and ends it when the machine has less than `spare` GiB left.
    """
    usage, phase, start = Usage(), ["start"], time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=said, text=True, env={**os.environ, **environment}
        )
        reader = Thread(target=_read_phases, args=(process, phase))
        reader.start()
        try:
            while process.poll() is None:
                _look(process.pid, phase[-1], usage)
                if _available() < spare:
                    held = f"{usage.peak:.1f} GiB, {usage.anonymous:.1f} of it anonymous"
                    raise Stopped(f"ended in {phase[-1]} at {held}: the machine had {spare} GiB left")
                time.sleep(_EVERY)
        finally:
            process.kill()
            process.wait()
            reader.join()
        usage.seconds = time.perf_counter() - start
        if process.returncode:
            said.seek(0)
            lines = said.read().strip().splitlines() or ["it said nothing"]
            raise Stopped(f"exit code {process.returncode} in {phase[-1]}: {lines[-1][:300]}")
    return usage


def _read_phases(process: subprocess.Popen[str], phase: list[str]) -> None:
    assert process.stdout is not None  # it was asked for
    with process.stdout:
        phase.extend(line.removeprefix(PHASE).strip() for line in process.stdout if line.startswith(PHASE))


def _look(pid: int, phase: str, usage: Usage) -> None:
    with suppress(OSError, KeyError):  # it has ended meanwhile
        fields = _fields(Path(f"/proc/{pid}/status"))
        usage.peak = max(usage.peak, fields["VmHWM"])
        usage.anonymous = max(usage.anonymous, fields["RssAnon"])
        usage.phases[phase] = max(usage.phases.get(phase, 0.0), fields["VmRSS"])


def installed() -> float:
    """Return how much memory the machine has, in GiB."""
    return _fields(Path("/proc/meminfo"))["MemTotal"]


def _available() -> float:
    return _fields(Path("/proc/meminfo"))["MemAvailable"]


def _fields(file: Path) -> dict[str, float]:
    """Return the amounts in a file of /proc, in GiB."""
    lines = (line.split() for line in file.read_text(encoding="ascii", errors="replace").splitlines())
    return {words[0].rstrip(":"): int(words[1]) / _GIB for words in lines if words[-1] == "kB"}
