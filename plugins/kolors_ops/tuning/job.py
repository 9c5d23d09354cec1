"""The job of the recipe tune_kernels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

import torch

from kolors_kernel.component import BuildContext
from kolors_kernel.errors import Interrupted, RecipeError, RunError
from kolors_kernel.graph import Graph, step
from kolors_ops.table import Row, Table, family_of, read_rows, table_at, write_rows
from kolors_ops.trials import Trial
from kolors_ops.tuning.clock import GPUClock
from kolors_ops.tuning.log import TuningLog, key_of
from kolors_ops.tuning.neighbours import neighbours, settings_of
from kolors_ops.tuning.proving import TRIALS, Proof, Use, uses_of

if TYPE_CHECKING:
    from kolors_ops.tuning.config import Tune

logger = logging.getLogger(__name__)
TABLE, LOG = "launches.json", "tried.jsonl"


class Clock(Protocol):
    """What a job asks of the device: see GPUClock."""

    device: torch.device
    name: str

    def milliseconds(self, work: Callable[[], object]) -> float:
        """Return the time of a call."""

    def ctas(self, kind: str, row: Row, table: Table) -> int:
        """Return how many programs of a row's kernel fit on a multiprocessor."""


@dataclass(frozen=True)
class Search:
    """The search around one row: the other rows, the calls that use it, and how it is to go."""

    rows: Mapping[str, Row]
    uses: Sequence[Use]
    most: int
    gain: float
    log: TuningLog

    def table(self, row: Row) -> Table:
        """Return the table with this row in its place."""
        return Table({**self.rows, key_of(row): row}.values())


Candidates: TypeAlias = Sequence[Row]
Times: TypeAlias = Mapping[int, float]
"""Milliseconds of the candidates that were right, by their number."""


@step(writes="candidates")
def propose(row: Row, search: Search) -> Candidates:
    """List the row itself, then those near it."""
    return [row, *neighbours(row, most=search.most)]


@step(writes="times")
def prove_and_time(candidates: Candidates, search: Search, clock: Clock) -> Times:
    """Time every candidate that is right in all the calls that use it; those that were tried before are not again."""
    proof, times = Proof(search.uses, clock.device, candidates[0].bits), {}
    for number, candidate in enumerate(candidates):
        known = search.log.outcome(candidate)
        if known is None:
            search.log.begin(candidate)
            try:
                wrong = proof.against(search.table(candidate))
                spent = None if wrong else proof.time(search.table(candidate), clock.milliseconds)
            except (KeyboardInterrupt, Interrupted):
                search.log.forget(candidate)
                raise
            known = search.log.end(candidate, milliseconds=spent, wrong=wrong)
        if known.milliseconds is not None:
            times[number] = known.milliseconds
    return times


@step(writes="best")
def choose(candidates: Candidates, times: Times, search: Search) -> Row:
    """Take the fastest candidate where it saves enough, else the row as it was. Raises RunError if none is right."""
    if not times:
        raise RunError(f"no configuration of {key_of(candidates[0])} is right on this GPU: {search.log.path} says why")
    fastest = min(times, key=times.__getitem__)
    own = times.get(0)
    return candidates[fastest if own is None or times[fastest] < (1 - search.gain) * own else 0]


def tuning() -> Graph:
    """Return what is done with one row."""
    return Graph(
        [propose, prove_and_time, choose], inputs=["row", "search"], outputs=["best", "times"], parts=["clock"]
    )


class TuneJob:
    """Tunes one row after the other, and writes the table after each; see `Tune`."""

    def __init__(
        self, recipe: Tune, ctx: BuildContext, *, clock: Clock | None = None, trials: Sequence[Trial] = TRIALS
    ) -> None:
        self.graphs: Mapping[str, Graph] = {"tune": tuning()}
        self._recipe, self._ctx, self._clock, self._trials = recipe, ctx, clock, trials

    def run(self) -> Mapping[str, float]:
        """Return how many rows there are, were tuned now and before, changed, and how many candidates were tried.

        Raises RecipeError where there is no GPU and something to tune, for a kernel that is not in the table, and where
        the folder holds what was tuned on another GPU.
        """
        recipe, out, clock = self._recipe, self._ctx.out, self._clock
        if clock is None and recipe.kernels != []:
            clock = GPUClock(self._ctx.device, milliseconds=recipe.milliseconds)
        rows = self._start(torch.device(self._ctx.device) if clock is None else clock.device)
        out.mkdir(parents=True, exist_ok=True)
        if clock is None:
            write_rows([*rows.values()], out / TABLE)
            return {"rows": len(rows), "tuned": 0}
        log = TuningLog(out / LOG, gpu=clock.name)
        done = _tuned_before(out / TABLE, log)
        rows |= {key: row for key, row in done.items() if key in rows}
        write_rows([*rows.values()], out / TABLE)
        used = uses_of([*rows.values()], self._trials, clock.device, recipe.bits)
        changed, left = 0, [key for key, row in rows.items() if self._is_wanted(row) and key not in done]
        for key in [key for key in left if not used.get(key)]:
            logger.info("%s: no call that is tried uses it; its row stays", key)
            left.remove(key)
        for number, key in enumerate(left, start=1):
            before, search = rows[key], Search(dict(rows), used[key], recipe.candidates, recipe.gain, log)
            rows[key] = self._tune(before, search, clock, f"{number}/{len(left)}")
            changed += settings_of(rows[key]) != settings_of(before)
            write_rows([*rows.values()], out / TABLE)
        counts = {"tuned": len(left), "tuned before": len(done), "changed": changed}
        return {"rows": len(rows), **counts, "tried": log.tried, "rejected": log.rejected}

    def _start(self, device: torch.device) -> dict[str, Row]:
        """Return the rows for the family of the device, by key; those of the nearest family where it has none."""
        family, every = family_of(device), table_at(str(self._recipe.table or "")).rows
        near = family if any(row.family == family for row in every) else "gfx942" if torch.version.hip else "sm_80"
        rows = {key_of(row): row for row in every if row.family == near}
        if unknown := sorted({*(self._recipe.kernels or ())} - {row.kernel for row in rows.values()}):
            known = ", ".join(sorted({row.kernel for row in rows.values()}))
            raise RecipeError(f"kernels: the table has no {', '.join(unknown)} for {near}; it has: {known}")
        return {key: row.model_copy(update={"family": family}) for key, row in rows.items()}

    def _is_wanted(self, row: Row) -> bool:
        kernels = self._recipe.kernels
        return row.bits in self._recipe.bits and (kernels is None or row.kernel in kernels)

    def _tune(self, row: Row, search: Search, clock: Clock, progress: str) -> Row:
        best, times = self.graphs["tune"].run(row=row, search=search, clock=clock)
        kind = search.uses[0].trial.kind
        found: Row = best.model_copy(update={"ctas": clock.ctas(kind, best, search.table(best))})
        search.log.choose(found)
        shipped, fastest = times.get(0), min(times.values())
        said = "wrong" if shipped is None else f"{shipped:.4f} ms"
        logger.info("%s %s: the row as it was %s, the fastest %.4f ms", progress, key_of(row), said, fastest)
        return found


def _tuned_before(path: Path, log: TuningLog) -> dict[str, Row]:
    """Return by key the rows of a table that the log says were chosen."""
    rows = read_rows(path) if path.is_file() else []
    return {key_of(row): row for row in rows if log.chosen.get(key_of(row)) == row}
