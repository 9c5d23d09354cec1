"""Configurations near one of the table, which a tuner tries."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from kolors_ops.table import Row

LEAST_BLOCK = 4
"""A smaller constant of a kernel is a switch or a count, and no size of a block."""
MOST_BLOCK, MOST_WARPS, MOST_STAGES = 8192, 16, 5


def neighbours(row: Row, *, most: int) -> list[Row]:
    """Return configurations that differ from a row's by one step, then by two that belong together: at most so many.

    A step doubles or halves a block or the warps, or adds or takes away a stage. A block and the warps belong together,
    since together they keep what a thread holds, and so do two blocks, of which one grows as the other shrinks.
    """
    found = {settings_of(each): each for each in _all(row) if settings_of(each) != settings_of(row)}
    return list(islice(found.values(), most))


def _all(row: Row) -> Iterator[Row]:
    blocks = [name for name, size in row.blocks.items() if size >= LEAST_BLOCK and size & (size - 1) == 0]
    for double in (True, False):
        yield from _with(row, warps=_scaled(row.warps, double))
    for stages in (row.stages + 1, row.stages - 1):
        yield from _with(row, stages=stages)
    for name in blocks:
        for double in (True, False):
            yield from _with(row, **{name: _scaled(row.blocks[name], double)})
    for name in blocks:
        for double in (True, False):
            yield from _with(row, warps=_scaled(row.warps, double), **{name: _scaled(row.blocks[name], double)})
    for grows in blocks:
        for shrinks in blocks:
            if grows != shrinks:
                yield from _with(row, **{grows: 2 * row.blocks[grows], shrinks: row.blocks[shrinks] // 2})


def _with(row: Row, *, warps: int = 0, stages: int | None = None, **blocks: int) -> Iterator[Row]:
    warps, stages = warps or row.warps, row.stages if stages is None else stages
    sizes_fit = all(LEAST_BLOCK <= size <= MOST_BLOCK for size in blocks.values())
    if sizes_fit and 1 <= warps <= MOST_WARPS and 1 <= stages <= MOST_STAGES:
        # How many fit on a multiprocessor is found by compiling: one does, or it is not launched at all.
        yield row.model_copy(update={"warps": warps, "stages": stages, "blocks": {**row.blocks, **blocks}, "ctas": 1})


def _scaled(size: int, double: bool) -> int:
    return 2 * size if double else size // 2


def settings_of(row: Row) -> tuple[Any, ...]:
    """Return what of a row decides how its kernel is compiled."""
    return row.warps, row.stages, tuple(sorted(row.blocks.items()))
