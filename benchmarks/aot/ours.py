"""Every launch that the ops plan for their samples, compiled: a row each."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from benchmarks.aot.figures import Figures
from benchmarks.aot.launches import Planned, Unplanned, compiled, op_modules, planned
from benchmarks.report import Note, Result, Row


def results(options: argparse.Namespace) -> Iterator[Result]:
    """Compile the samples of every op, or of those that were asked for."""
    modules = [name for name in op_modules() if not options.op or name.split(".")[-2] in options.op]
    found = list(planned(modules, options.dtype, options.family))
    for missing in found:
        if isinstance(missing, Unplanned):
            yield Note("aot", f"{missing.shape} {missing.place.dtype} {missing.place.family}", "", missing.reason)
    launches = [each for each in found if isinstance(each, Planned)]
    for each, figures in compiled(launches, cache_dir=options.cache, processes=options.processes):
        yield _note(each, figures) if isinstance(figures, str) else _row(each, figures)


def _case(each: Planned) -> str:
    return f"{each.op} {each.shape} {each.place.dtype} {each.place.family}"


def _note(each: Planned, reason: str) -> Note:
    return Note("aot", _case(each), each.kernel, f"it does not compile: {reason}")


def _row(each: Planned, figures: Figures) -> Row:
    stated = each.row.ctas
    remark = f"{figures.registers} registers, {figures.ctas * figures.threads} threads"
    if figures.local or figures.spill_stores:
        remark += f", spills {figures.spill_stores} and {figures.spill_loads}"
    return Row(
        "aot",
        _case(each),
        each.kernel,
        figures.ctas,
        "the table states",
        stated,
        "CTAs",
        figures.ctas / stated,
        extra={
            "op": each.op,
            "shape": each.shape,
            "dtype": each.place.dtype,
            "arch": each.place.family,
            "warps": each.row.warps,
            "stages": each.row.stages,
            "ctas_stated": stated,
            **record(figures),
        },
        remark=remark,
    )


def record(figures: Figures) -> dict[str, float | int | str]:
    """Return the figures by name, as they stand in the JSON."""
    return {
        "registers": figures.registers,
        "spill_stores": figures.spill_stores,
        "spill_loads": figures.spill_loads,
        "local": figures.local,
        "shared": figures.shared,
        "threads": figures.threads,
        "ctas": figures.ctas,
        "occupancy": round(figures.occupancy, 3),
        "mma": figures.mma,
        "wide_loads": round(figures.loads.share, 3),
        "wide_stores": round(figures.stores.share, 3),
        "wide_loaded_bytes": round(figures.loads.share_of_bytes, 3),
        "wide_stored_bytes": round(figures.stores.share_of_bytes, 3),
        "instructions": figures.instructions,
    }
