"""What GPUs could do a forward of the U-Net in at best, before and after its fusions: limits on paper, not measured.

A launch takes at least as long as its bytes at the bandwidth of memory, or its products at the rate of tensor cores,
whichever is longer; a forward takes the sum. Launching costs nothing here, caches keep nothing between launches, and
elementwise arithmetic is free. Bytes, operations and launches are counted from the module tree: see benchmarks/limits.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.limits.page import write_tables
from benchmarks.report import Note, Result, Row

if TYPE_CHECKING:
    from benchmarks.limits.counted import Launched

threads = 1
NOT_MEASURED = "these are limits that follow from bytes, operations and a GPU's data sheet; no GPU was there"
ALL, LAST = "all", "all, were weights channels last"
APART = (ALL, LAST, "guidance and solver step")
"""Rows of a whole forward, or that are none of its own."""
PEER = "torch, op by op"


@dataclass(frozen=True)
class GPU:
    """A GPU by its data sheet: dense bfloat16 products in TFLOP/s, memory in TB/s; and whose launches it takes."""

    name: str
    tflops: float
    bandwidth: float
    family: str

    def seconds(self, launch: Launched) -> float:
        """Return how long a launch takes at least."""
        return max(launch.flop / self.tflops, launch.moved / self.bandwidth) / 1e12


GPUS = (
    GPU("A100-80", 312, 2.0, "sm_80"),
    GPU("A100-40", 312, 1.555, "sm_80"),
    GPU("H100", 989, 3.35, "sm_90"),
)


@dataclass(frozen=True)
class Limit(Row):
    """A row of limits; where nothing is left of what there was, the ratio is infinite, which JSON cannot say."""

    def record(self) -> dict[str, Any]:
        """Return the row as one flat JSON object, without a ratio where it is infinite."""
        return {**super().record(), "ratio": self.ratio if math.isfinite(self.ratio) else None}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare what is computed."""
    parser.add_argument("--size", type=int, default=1024, help="pixels of a side")
    parser.add_argument("--batch", type=int, default=2, help="rows of a forward; guidance takes two for a picture")
    parser.add_argument("--shapes", action="store_true", help="also each op at each of its shapes, in microseconds")
    parser.add_argument("--page", type=Path, metavar="FILE", help="also write the tables into this page of Markdown")


def results(options: argparse.Namespace) -> Iterator[Result]:
    """Count the launches before and after, then give the limits of each GPU."""
    yield Note("roofline", "every figure", "", NOT_MEASURED)
    try:
        rows = list(_limits(options))
    except ImportError as error:
        yield Note("roofline", "kernels", "", f"{error}; plans need triton")
        return
    yield from rows
    if options.page is not None:
        write_tables(options.page, [row.record() for row in rows], apart=APART)


def _limits(options: argparse.Namespace) -> Iterator[Limit]:
    from benchmarks.limits import forward

    given, shape = forward.Given(batch=options.batch, side=options.size // 8), forward.RELEASED
    old, step, settings = forward.before(given, shape), forward.step(given, shape), f"{options.size} b{options.batch}"
    new = {family: forward.after(given, family, shape) for family in {gpu.family for gpu in GPUS}}
    last = {family: forward.after(given, family, shape, channels_last=True) for family in new}
    for gpu in GPUS:
        now = new[gpu.family]
        for op, pair in _pairs(old, now, by=forward.op_of):
            yield _limit(gpu, settings, op, pair)
        yield _limit(gpu, settings, ALL, (old, now))
        yield _limit(gpu, settings, LAST, (old, last[gpu.family]))
        yield _limit(gpu, settings, forward.STEP, (step, step))
    for gpu in GPUS if options.shapes else ():
        at_shapes = ([e for e in side if e.shape and forward.op_of(e) == e.op] for side in (old, new[gpu.family]))
        for op, pair in _pairs(*at_shapes, by=lambda launch: f"{launch.op} {launch.shape}"):
            yield _limit(gpu, settings, op, pair, each=True)


def _pairs(
    old: Sequence[Launched], new: Sequence[Launched], *, by: Callable[[Launched], str]
) -> list[tuple[str, tuple[list[Launched], list[Launched]]]]:
    """Return the launches of each group before and after, those that move most before first."""
    groups: dict[str, tuple[list[Launched], list[Launched]]] = {}
    for index, side in enumerate((old, new)):
        for each in side:
            groups.setdefault(by(each), ([], []))[index].append(each)
    return sorted(groups.items(), key=lambda pair: -sum(each.moved for each in pair[1][0]))


def _limit(
    gpu: GPU, settings: str, op: str, pair: tuple[Sequence[Launched], Sequence[Launched]], *, each: bool = False
) -> Limit:
    """Return the row of a group of launches: all of them in milliseconds, or `each` call in microseconds."""
    times = [sum(map(gpu.seconds, side)) for side in pair]
    calls = max(launch.call for side in pair for launch in side) if each else 1
    peer, ours = (time * (1e6 / calls if each else 1e3) for time in times)
    gigabytes, operations = ([sum(getattr(one, what) for one in side) for side in pair] for what in ("moved", "flop"))
    extra: dict[str, float | int | str] = {"gpu": gpu.name, "op": op, **({"calls": calls} if each else {})}
    for name, index in (("peer", 0), ("ours", 1)):
        extra[f"{name}_launches"] = len(pair[index])
        extra[f"{name}_gb"] = gigabytes[index] / 1e9
        extra[f"{name}_tflop"] = operations[index] / 1e12
    remark = (
        f"{extra['peer_launches']} -> {extra['ours_launches']} launches, "
        f"{extra['peer_gb']:.3f} -> {extra['ours_gb']:.3f} GB, {extra['ours_tflop']:.3f} TFLOP"
    )
    unit, ratio = "us" if each else "ms", peer / ours if ours else math.inf
    return Limit("roofline", f"{gpu.name} {settings} {op}", "fused", ours, PEER, peer, unit, ratio, None, extra, remark)
