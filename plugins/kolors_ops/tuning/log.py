"""What a tuner has tried, a line each, so that a run that was stopped goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kolors_kernel.errors import RecipeError
from kolors_ops.table import Row

ENDED = "an earlier run ended while it was tried"


@dataclass(frozen=True)
class Outcome:
    """The time of a configuration that was right, or why it has none."""

    milliseconds: float | None
    wrong: str | None


def key_of(row: Row) -> str:
    """Return what a row is for, which there is one row for in a family's table."""
    return f"{row.kernel}{row.case and f' ({row.case})'}, {row.bits} bits, width {row.width}"


class TuningLog:
    """The lines of a file: on which GPU, what was begun, how it ended, what was chosen.

    What was begun and did not end took the process with it, as a fault on a GPU does: it is not tried again. Raises
    RecipeError when the file is of another GPU.
    """

    def __init__(self, path: Path, *, gpu: str) -> None:
        self.path, self.chosen = path, dict[str, Row]()
        self._outcomes: dict[str, Outcome] = {}
        lines = _lines(path) if path.is_file() else []
        for line in lines:
            self._take(line, gpu)
        # Anew, since of the last line a run that was killed may have written a part.
        path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
        if not lines:
            self._write({"event": "gpu", "gpu": gpu, "torch": torch.__version__})

    @property
    def tried(self) -> int:
        """How many configurations were tried, in all runs."""
        return len(self._outcomes)

    @property
    def rejected(self) -> int:
        """How many of them were wrong or could not be launched."""
        return sum(outcome.milliseconds is None for outcome in self._outcomes.values())

    def outcome(self, row: Row) -> Outcome | None:
        """Return what became of a configuration, or None where it has not been tried."""
        return self._outcomes.get(_named(row))

    def begin(self, row: Row) -> None:
        """Note that a configuration is about to be tried."""
        self._write({"event": "began", **_settings(row)})

    def end(self, row: Row, *, milliseconds: float | None, wrong: str | None) -> Outcome:
        """Note and return what became of it."""
        self._write({"event": "ended", **_settings(row), "milliseconds": milliseconds, "wrong": wrong})
        self._outcomes[_named(row)] = Outcome(milliseconds, wrong)
        return self._outcomes[_named(row)]

    def forget(self, row: Row) -> None:
        """Note that it was not tried after all."""
        self._write({"event": "stopped", **_settings(row)})

    def choose(self, row: Row) -> None:
        """Note the row that a search ended with."""
        self._write({"event": "chosen", "key": key_of(row), "row": row.model_dump()})
        self.chosen[key_of(row)] = row

    def _take(self, line: Mapping[str, Any], gpu: str) -> None:
        event = line["event"]
        if event == "gpu" and line["gpu"] != gpu:
            raise RecipeError(f"{self.path} is of another GPU, {line['gpu']} and not {gpu}: use another --out")
        if event == "began":
            self._outcomes[_of_line(line)] = Outcome(None, ENDED)
        if event == "stopped":
            self._outcomes.pop(_of_line(line), None)
        if event == "ended":
            self._outcomes[_of_line(line)] = Outcome(line["milliseconds"], line["wrong"])
        if event == "chosen":
            self.chosen[line["key"]] = Row.model_validate(line["row"])

    def _write(self, line: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _lines(path: Path) -> list[Mapping[str, Any]]:
    """Return the lines that have an end."""
    *whole, _ = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in whole]


def _settings(row: Row) -> dict[str, Any]:
    return {"key": key_of(row), "blocks": dict(row.blocks), "warps": row.warps, "stages": row.stages}


def _named(row: Row) -> str:
    return _of_line(_settings(row))


def _of_line(line: Mapping[str, Any]) -> str:
    return json.dumps([line["key"], line["blocks"], line["warps"], line["stages"]], sort_keys=True)
