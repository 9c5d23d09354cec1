"""What a bench reports: comparison rows and notes, under a header that says where they were measured."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Protocol, Self, TextIO

from benchmarks.measure import Comparison

PACKAGES = ("kolors-kernel", "torch", "numpy", "pydantic", "zarr", "triton", "diffusers", "transformers", "openvino")
"""Whose versions the header gives, where they are installed."""


@dataclass(frozen=True)
class Row:
    """One comparison. `ratio` above 1: ours is better. `error` is the largest difference from the peer's result,
    relative to its largest value; None where there is nothing to compare. `extra` are figures of this bench alone, and
    `remark` is what the table says of them.
    """

    bench: str
    case: str
    ours_name: str
    ours: float
    peer_name: str
    peer: float
    unit: str
    ratio: float
    error: float | None = None
    extra: Mapping[str, float | int | str] = field(default_factory=lambda: MappingProxyType({}))
    remark: str = ""

    def record(self) -> dict[str, Any]:
        """Return the row as one flat JSON object."""
        named = {name: value for name, value in vars(self).items() if name not in ("extra", "remark")}
        return {"row": "comparison", **named, **self.extra}

    def line(self) -> str:
        """Return the row as one line of the table."""
        error = "" if self.error is None else f"{self.error:.1e}"
        figures = f"{self.ours:>10.3f} {self.peer:>10.3f} {self.unit:<6} {self.ratio:>7.2f} {error:>8}"
        return f"{self.case:<58} {self.ours_name:<24} {figures}  {self.peer_name}{self.remark and f'; {self.remark}'}"


@dataclass(frozen=True)
class Note:
    """A case without a figure, and why."""

    bench: str
    case: str
    ours_name: str
    reason: str

    def record(self) -> dict[str, Any]:
        """Return the note as one flat JSON object."""
        return {"row": "note", **vars(self)}

    def line(self) -> str:
        """Return the note as one line of the table."""
        return f"{self.case:<58} {self.ours_name:<24} not measured: {self.reason}"


class Result(Protocol):
    """What a bench yields: a row, a note, or what a bench has of its own."""

    def record(self) -> dict[str, Any]:
        """Return it as one flat JSON object."""

    def line(self) -> str:
        """Return it as one line of the table."""


HEADINGS = (
    f"{'case':<58} {'ours':<24} {'ours':>10} {'peer':>10} {'unit':<6} {'ratio':>7} {'error':>8}  peer\n"
    f"{'':<58} {'':<24} {'':>10} {'':>10} {'':<6} {'>1 good':>7}"
)


def timed_row(
    bench: str,
    case: str,
    *,
    names: tuple[str, str],
    measured: Comparison,
    error: float | None = None,
    extra: Mapping[str, float | int | str] = MappingProxyType({}),
    remark: str = "",
) -> Row:
    """Return the row of a comparison of times, in CPU milliseconds; the other times and the rounds go to `extra`.

    `names` are ours and the peer's.
    """
    walls = {"ours_wall": measured.ours.wall * 1e3, "peer_wall": measured.peer.wall * 1e3}
    return Row(
        bench,
        case,
        names[0],
        measured.ours.cpu * 1e3,
        names[1],
        measured.peer.cpu * 1e3,
        "cpu ms",
        measured.ratio,
        error,
        {
            "least_ratio": measured.least_ratio,
            **walls,
            "wall_ratio": measured.wall_ratio,
            "rounds": measured.rounds,
            **extra,
        },
        remark,
    )


class Report:
    """Prints results as they come and, given a file, writes them there as JSON lines, the header first."""

    def __init__(self, header: Mapping[str, Any], path: Path | None) -> None:
        self.header = header
        self.path = path
        self._file: TextIO | None = None

    def __enter__(self) -> Self:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("w", encoding="utf-8")
        self._write(self.header)
        machine, versions = self.header["machine"], self.header["versions"]
        cores = f"{machine['cores']} cores, {machine['threads']} in use"
        print(f"{machine['cpu']}, {cores}, load {machine['load']}, {self.header['date']}")
        print(", ".join(f"{name} {number}" for name, number in versions.items()))
        print(HEADINGS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, result: Result) -> None:
        """Print one result and write it to the file."""
        print(result.line(), flush=True)
        self._write(result.record())

    def _write(self, record: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
            self._file.flush()


def header(bench: str, arguments: Sequence[str], *, threads: int) -> dict[str, Any]:
    """Return where and with what a bench runs: the command, the machine with its load of the last minute, versions."""
    machine = {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": threads,
        "system": platform.platform(),
        "load": round(os.getloadavg()[0], 1),
    }
    return {
        "row": "header",
        "bench": bench,
        "command": " ".join(["python -m benchmarks", *arguments]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine,
        "versions": {"python": platform.python_version(), **_versions(PACKAGES)},
    }


def _versions(packages: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def cpu_model() -> str:
    """Return the name of the processor as the system gives it."""
    listing = Path("/proc/cpuinfo")
    if sys.platform == "linux" and listing.exists():
        for line in listing.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
