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
    """Medians over the rounds, and the medians of the rounds' own ratios: above 1, ours took less than the peer.

    `least_ratio` is that of the least CPU times, which other work on the machine disturbs least.
    """

    ours: Sample
    peer: Sample
    ratio: float
    least_ratio: float
    wall_ratio: float
    rounds: int


def compare(ours: Callable[[], Sample], peer: Callable[[], Sample], *, rounds: int) -> Comparison:
    """Take a sample of each in every round, in turns of who goes first, after one round that does not count.

    Raises ValueError for fewer than one round.
    """
    return compared(*take_turns((ours, peer), rounds=rounds))


def take_turns(samplers: Sequence[Callable[[], Sample]], *, rounds: int) -> list[list[Sample]]:
    """Return the samples of each over the rounds, each round taken from another one on, after one that does not count.

    Raises ValueError for fewer than one round.
    """
    if rounds < 1:
        raise ValueError(f"a median needs at least one round, not {rounds}")
    for sampler in samplers:
        sampler()
    taken: list[list[Sample]] = [[] for _ in samplers]
    for number in range(rounds):
        for turn in range(len(samplers)):
            index = (number + turn) % len(samplers)
            taken[index].append(samplers[index]())
    return taken


def compared(ours: Sequence[Sample], peer: Sequence[Sample]) -> Comparison:
    """Compare the samples of as many rounds."""
    return Comparison(
        _median(ours),
        _median(peer),
        statistics.median(theirs.cpu / mine.cpu for mine, theirs in zip(ours, peer, strict=True)),
        min(theirs.cpu for theirs in peer) / min(mine.cpu for mine in ours),
        statistics.median(theirs.wall / mine.wall for mine, theirs in zip(ours, peer, strict=True)),
        len(ours),
    )


def _median(samples: Sequence[Sample]) -> Sample:
    return Sample(statistics.median(s.cpu for s in samples), statistics.median(s.wall for s in samples))


class Watch:
    """A stopwatch from now on; `sample` is what has passed."""

    def __init__(self) -> None:
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    @property
    def sample(self) -> Sample:
        """What this process has taken since."""
        return Sample(time.process_time() - self._cpu, time.perf_counter() - self._wall)


def calls(function: Callable[[], object], *, at_least: float) -> Callable[[], Sample]:
    """Return a sampler of one call in this process, averaged over as many calls as take `at_least` seconds of CPU.

    A sample in which the clock passes less than half of that is made longer. Both since one reading says little where
    a machine is shared: a call may be held up once, and a virtual machine's clock of CPU time stands still as long as
    the host owes it time.
    """
    function()  # the first call pays for caches and allocations
    repeats = 1
    while _repeated(function, repeats).cpu < at_least:
        repeats *= 2

    def sample() -> Sample:
        watch, done = Watch(), 0
        while True:
            _repeat(function, repeats)
            taken, done = watch.sample, done + repeats
            if taken.cpu >= at_least / 2:
                return Sample(taken.cpu / done, taken.wall / done)

    return sample


def _repeat(function: Callable[[], object], times: int) -> None:
    for _ in range(times):
        function()


def _repeated(function: Callable[[], object], times: int) -> Sample:
    watch = Watch()
    _repeat(function, times)
    return watch.sample


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
