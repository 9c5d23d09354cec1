"""Run one bench by name. A bench is any module of this package that has `threads`, `add_options` and `results`.

It may also have `unable(options)`, which says why it cannot run here: then nothing is written, and the exit code is 2.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, cast

import benchmarks
from benchmarks.report import Report, Result, header


class Bench(Protocol):
    """What a module of this package offers to be run by its name; its docstring's first line is the summary."""

    threads: int
    """How many threads the measured work runs on."""

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Declare the options of this bench."""

    def results(self, options: argparse.Namespace) -> Iterator[Result]:
        """Measure, yielding each result as soon as it is known."""


def benches() -> dict[str, Bench]:
    """Return the benches by module name, sorted."""
    names = sorted(m.name for m in pkgutil.iter_modules(benchmarks.__path__) if not m.name.startswith("_"))
    modules = {name: importlib.import_module(f"benchmarks.{name}") for name in names}
    offers = ("threads", "add_options", "results")
    return {name: cast(Bench, m) for name, m in modules.items() if all(hasattr(m, each) for each in offers)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one bench: a table on stdout and, with --json, JSON lines in a file; return the exit code."""
    parser = argparse.ArgumentParser("python -m benchmarks", description="Measure this project beside its peers.")
    chosen = parser.add_subparsers(required=True, metavar="NAME", dest="name")
    found = benches()
    for name, bench in found.items():
        summary = (bench.__doc__ or "").splitlines()[0]
        each = chosen.add_parser(name, help=summary, description=summary)
        each.add_argument("--json", type=Path, metavar="FILE", help="also write JSON lines, the header first")
        bench.add_options(each)
    written = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(written)
    bench = found[options.name]
    if reason := getattr(bench, "unable", _able)(options):
        print(f"{options.name}: {reason}", file=sys.stderr)
        return 2
    with Report(header(options.name, written, threads=bench.threads), options.json) as report:
        for result in bench.results(options):
            report.add(result)
    return 0


def _able(options: argparse.Namespace) -> str | None:
    return None


if __name__ == "__main__":
    sys.exit(main())
