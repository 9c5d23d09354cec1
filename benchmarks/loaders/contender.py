"""A loader to be measured, and the process it is measured in, seen from outside."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parents[2]
PATIENCE = 600  # seconds that one answer may take


class Failed(Exception):
    """A loader that cannot be measured, and why."""


@dataclass(frozen=True)
class Contender:
    """A module of this package, with an option after a colon; what it loads, and with how many worker processes."""

    name: str
    task: str
    workers: int
    source: Path
    python: str

    @property
    def store(self) -> Path:
        """The folder of what the library reads, beside the source; only the option "raw" has one of its own."""
        module, _, option = self.name.partition(":")
        return self.source.with_name(f"{self.source.name}-{module}{'-raw' * (option == 'raw')}")

    def store_mb(self) -> float:
        """Return the size of the store in MB."""
        return sum(file.stat().st_size for file in self.store.rglob("*") if file.is_file()) / 1e6

    def job(self) -> str:
        """Return what `measured.py` is to do, as its argument."""
        module, _, option = self.name.partition(":")
        setting = {"task": self.task, "source": str(self.source), "workers": self.workers, "option": option}
        return json.dumps({"module": module, "setting": setting, "store": str(self.store)})


class Process:
    """The process of one contender, while the context is open: it has the library imported and waits for commands.

    Raises Failed where it does not answer.
    """

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        self.versions = ""

    def __enter__(self) -> Self:
        self.said = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [self.contender.python, "-m", "benchmarks.loaders.measured", self.contender.job()],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            start_new_session=True,
        )
        try:
            hello = self._answer()
            if "missing" in hello:
                raise Failed(f"needs '{hello['missing']}': pip install -r requirements/bench.txt, and --python")
        except Failed:
            self._end()
            raise
        self.versions = hello["versions"]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def ask(self, command: str, *arguments: float) -> Mapping[str, Any]:
        """Have one command of `measured.py` done and return its figures."""
        assert self.process.stdin is not None  # it was asked for
        self.process.stdin.write(json.dumps([command, *arguments]).encode() + b"\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Mapping[str, Any]:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        line = self.process.stdout.readline() if ready else b""
        if not line:
            self.said.seek(0)
            last = self.said.read().decode(errors="replace").strip().splitlines()[-1:]
            raise Failed("".join(last) or f"no answer within {PATIENCE} s")
        answer: Mapping[str, Any] = json.loads(line)
        return answer

    def _end(self) -> None:
        # Its workers are of its session: none outlives it, whatever state a library is in.
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with self.process, self.said:
            pass
