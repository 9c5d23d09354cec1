"""CPU time and memory of this process with all that it started, while they live."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path


def cpu_seconds() -> float:
    """Return the user and system time of this process, of every process below it and of those that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = time.process_time() + ended.ru_utime + ended.ru_stime
    return own + sum(map(_clock, descendants(os.getpid())))


def memory() -> Mapping[str, float]:
    """Return MB of this process and every process below it.

    private_mb: memory that no file backs, shared memory among it, every page once. unshared_mb: pages of one process
    alone, those of mapped files among them. rss_mb: all pages mapped, those of several processes counted in each.
    """
    totals = {"private_mb": 0.0, "unshared_mb": 0.0, "rss_mb": 0.0}
    for pid in (os.getpid(), *descendants(os.getpid())):
        fields = _rollup(pid)
        totals["private_mb"] += fields["Pss_Anon"] + fields["Pss_Shmem"]
        totals["unshared_mb"] += fields["Private_Clean"] + fields["Private_Dirty"]
        totals["rss_mb"] += fields["Rss"]
    return totals


def descendants(pid: int) -> Iterator[int]:
    """Yield the processes below one."""
    children = ""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended meanwhile
            children += (thread / "children").read_text()
    for child in map(int, children.split()):
        yield child
        yield from descendants(child)


def _clock(pid: int) -> float:
    # The clock of another process by its number, as clock_getcpuclockid(3) makes it: to the nanosecond, where
    # /proc/PID/stat has hundredths of a second.
    return time.clock_gettime((~pid << 3) | 2)


def _rollup(pid: int) -> Mapping[str, float]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {name: int(amount.split()[0]) * 1024 / 1e6 for name, amount in (line.split(":") for line in lines)}
