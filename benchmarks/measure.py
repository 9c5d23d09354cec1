"""Interleaved measurement of two things, so that a change of the machine's load meets both."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """What one execution took, in seconds: CPU time of the process (all its threads), and wall time."""

    cpu: float
    wall: float


@dataclass(frozen=True)
class Comparison:
    """Medians over the rounds, and the medians of the rounds' own ratios: above 1, ours took less than the peer."""

    ours: Sample
    peer: Sample
    ratio: float
    wall_ratio: float
    rounds: int


def compare(ours: Callable[[], Sample], peer: Callable[[], Sample], *, rounds: int) -> Comparison:
    """Take a sample of each in every round, in turns of who goes first, after one round that does not count.

    Raises ValueError for fewer than one round.
    """
    if rounds < 1:
        raise ValueError(f"a median needs at least one round, not {rounds}")
    ours(), peer()
    pairs = []
    for number in range(rounds):
        if number % 2:
            theirs, mine = peer(), ours()
        else:
            mine, theirs = ours(), peer()
        pairs.append((mine, theirs))
    return Comparison(
        _median([mine for mine, _ in pairs]),
        _median([theirs for _, theirs in pairs]),
        statistics.median(theirs.cpu / mine.cpu for mine, theirs in pairs),
        statistics.median(theirs.wall / mine.wall for mine, theirs in pairs),
        rounds,
    )


def _median(samples: Sequence[Sample]) -> Sample:
    return Sample(statistics.median(s.cpu for s in samples), statistics.median(s.wall for s in samples))


def calls(function: Callable[[], object], *, at_least: float) -> Callable[[], Sample]:
    """Return a sampler of one call in this process, averaged over as many calls as take `at_least` seconds of CPU."""
    function()  # the first call pays for caches and allocations
    start = time.process_time()
    function()
    repeats = max(1, round(at_least / max(time.process_time() - start, 1e-7)))

    def sample() -> Sample:
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(repeats):
            function()
        return Sample((time.process_time() - cpu) / repeats, (time.perf_counter() - wall) / repeats)

    return sample


def processes(command: Sequence[str], *, environment: Mapping[str, str]) -> Callable[[], Sample]:
    """Return a sampler of a whole process, from its start to its end, its output thrown away.

    The sampler raises RuntimeError with the end of its stderr when the process fails.
    """

    def sample() -> Sample:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, **environment}
        )
        assert process.stderr is not None  # it was asked for
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stderr.close()
        if process.returncode:
            tail = said.decode(errors="replace")[-2000:]
            raise RuntimeError(f"{' '.join(command)} ended with exit code {process.returncode}: {tail}")
        return Sample(usage.ru_utime + usage.ru_stime, wall)

    return sample
