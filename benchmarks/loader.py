"""Loading shuffled batches of 32: ours beside the loaders people use, in one interleaved run.

Each loader lives in a process of its own and reads a store of its own format with the same samples. A round measures
all of them, each time from another one on. CPU time is that of all threads and workers. `loaders/` has a module for
each.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.loaders.contender import Contender, Failed, Process
from benchmarks.report import Note, Result, Row

threads = 1  # in each process; a loader with workers is as many processes more
RING = "memmap:ring"  # for latents without workers: buffers that are used again do not pass through torch's
CONTENDERS = (
    "ours:threads",
    "ours:processes",
    "ours:threads-chosen",
    "ours:processes-chosen",
    "ours:reader",
    "memmap",
    RING,
    "hugging_face",
    "litdata",
    "tensorstore",
    "tensorstore:raw",
    "lance",
    "webdataset",
    "mosaic",
    "zarr_python",
)
"""Modules of `loaders`, some with an option."""
TASKS = ("latents", "bytes", "decoded")
FIGURES = ("samples_s", "cpu_us", "first_ms", "private_mb", "unshared_mb", "rss_mb")


@dataclass(frozen=True)
class Outcome:
    """What was measured of one contender: the figures of each round, and what holds for all of them."""

    contender: Contender
    rounds: Sequence[Mapping[str, float]]
    facts: Mapping[str, float]
    versions: str

    def figures(self) -> dict[str, float]:
        """Return the medians over the rounds and the facts."""
        return {name: statistics.median(each[name] for each in self.rounds) for name in FIGURES} | dict(self.facts)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare what is loaded, by whom, and how long it is measured."""
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, help="latents; JPEGs as bytes or decoded")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=CONTENDERS, help="these beside ours")
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 2], help="worker processes")
    parser.add_argument("--rounds", type=int, default=5, help="how many interleaved rounds the medians are of")
    parser.add_argument("--seconds", type=float, default=0.5, help="the least a loader is timed in a round")
    parser.add_argument("--data", type=Path, help="the folder that keeps data sets and stores (default: none is kept)")
    parser.add_argument("--latents", type=int, default=1536, help="how many latents")
    parser.add_argument("--latent-side", type=int, default=128, help="height and width of a latent")
    parser.add_argument("--pictures", type=int, default=2000, help="how many JPEGs")
    parser.add_argument("--picture-side", type=int, default=512, help="height and width of the square ones")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that has the peers")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write all figures as a table")


def results(options: argparse.Namespace) -> Iterator[Result]:
    """Measure every loader at every task and number of workers, beside ours."""
    measured: list[Outcome] = []
    with TemporaryDirectory() as temporary:
        for task in options.tasks:
            contenders = _contenders(task, options.data or Path(temporary), options)
            with ExitStack() as running:
                processes = {}
                for contender in contenders:
                    try:
                        processes[contender] = running.enter_context(_start(contender))
                    except Failed as error:
                        yield _note(contender, str(error))
                outcomes, notes = _rounds(processes, options.rounds, options.seconds)
            yield from notes
            named = {each.contender: each for each in outcomes}
            for each in outcomes:
                ours = replace(each.contender, name=_ours(task, each.contender.workers), python=sys.executable)
                if each.contender != ours:
                    yield _row(named[ours], each) if ours in named else _note(each.contender, f"{ours.name} failed")
            measured += outcomes
    if options.markdown:
        options.markdown.write_text(table(measured), encoding="utf-8")


def _contenders(task: str, data: Path, options: argparse.Namespace) -> list[Contender]:
    from benchmarks.loaders.source import prepare  # numpy and Pillow, which `--help` does without

    latents = task == "latents"
    count, side = (options.latents, options.latent_side) if latents else (options.pictures, options.picture_side)
    folder = data / f"{'latents' if latents else 'jpegs'}-{count}-{side}"
    prepare(folder, latents=latents, count=count, side=side)
    return [
        Contender(name, task, workers, folder, sys.executable if name.startswith("ours") else options.python)
        for workers in options.workers
        for name in dict.fromkeys((_ours(task, workers), *options.only))
        if _applies(name, task, workers)
    ]


def _ours(task: str, workers: int) -> str:
    """Return which of ours the others stand beside."""
    if task == "bytes":
        return "ours:reader"
    return "ours:processes" if task == "latents" and workers else "ours:threads"


def _applies(name: str, task: str, workers: int) -> bool:
    if name == RING:
        return task == "latents" and not workers
    if name.startswith("ours"):
        return (name == "ours:reader") == (task == "bytes") and (workers > 0 or "processes" not in name)
    return True


def _start(contender: Contender) -> Process:
    """Return the process of a contender, its store written by another before, which leaves no trace in its memory."""
    if not contender.store.exists():
        with Process(contender) as writer:
            writer.ask("write")
    return Process(contender)


def _rounds(
    processes: Mapping[Contender, Process], rounds: int, seconds: float
) -> tuple[Sequence[Outcome], Sequence[Note]]:
    """Measure all in turns, and look at what they deliver once that can disturb nothing."""
    alive = list(processes)
    taken: dict[Contender, list[Mapping[str, float]]] = {each: [] for each in alive}
    facts: dict[Contender, Mapping[str, float]] = {}
    notes = []
    for number in range(rounds + 1):
        first = number * len(alive) // (rounds + 1)
        for each in (*alive[first:], *alive[:first]):
            try:
                if number < rounds:
                    taken[each].append(processes[each].ask("round", seconds))
                else:
                    facts[each] = _checked(processes[each])
            except Failed as error:
                notes.append(_note(each, str(error)))
                alive.remove(each)
    return [
        Outcome(each, taken[each], {**facts[each], "store_mb": each.store_mb()}, processes[each].versions)
        for each in alive
    ], notes


def _checked(process: Process) -> Mapping[str, float]:
    found = dict(process.ask("check"))
    if wrong := found.pop("wrong"):
        raise Failed(f"{wrong} samples came with contents or captions that are not theirs")
    if not found.pop("reordered"):
        raise Failed("two epochs came in the same order")
    return found


def _row(ours: Outcome, peer: Outcome) -> Row:
    mine, theirs = ours.figures(), peer.figures()
    pairs = list(zip(ours.rounds, peer.rounds, strict=True))
    extra: dict[str, float | int | str] = {"peer_versions": peer.versions, "rounds": len(pairs)}
    extra["wall_ratio"] = statistics.median(a["samples_s"] / b["samples_s"] for a, b in pairs)
    extra |= {f"ours_{name}": value for name, value in mine.items()}
    extra |= {f"peer_{name}": value for name, value in theirs.items()}
    return Row(
        "loader",
        _case(peer.contender),
        ours.contender.name,
        mine["cpu_us"],
        peer.contender.name,
        theirs["cpu_us"],
        "cpu us",
        statistics.median(b["cpu_us"] / a["cpu_us"] for a, b in pairs),
        extra=extra,
    )


def _note(contender: Contender, reason: str) -> Note:
    return Note("loader", _case(contender), contender.name, reason)


def _case(contender: Contender) -> str:
    return f"{contender.task}, {contender.workers} workers"


def _place(outcome: Outcome) -> tuple[int, int, float]:
    contender = outcome.contender
    return TASKS.index(contender.task), contender.workers, outcome.figures()["cpu_us"]


def table(outcomes: Sequence[Outcome]) -> str:
    """Return everything measured as a Markdown table, the least CPU time first."""
    names = ["samples_s", "cpu_us", "first_ms", "private_mb", "rss_mb", "store_mb", "missing", "doubled"]
    lines = [f"| task | workers | loader | {' | '.join(names)} |", "|---" * (len(names) + 3) + "|"]
    for each in sorted(outcomes, key=_place):
        figures = each.figures()
        cells = [each.contender.task, str(each.contender.workers), each.contender.name]
        lines.append(f"| {' | '.join(cells + [f'{figures[name]:,.0f}' for name in names])} |")
    return "\n".join(lines) + "\n"
