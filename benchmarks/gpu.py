"""Every Triton kernel on a GPU: is it right, and how long does it take beside torch, torch.compile and Liger.

Times are those of the device for a whole call of the op, medians with the second-level cache emptied before each call;
backward is the way back alone, of ops that have one. `--dry` does without a GPU what can be done: it builds the calls,
plans every launch and compiles it for `--family`, and reports and draws without times.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.aot.probe import TARGETS
from benchmarks.report import Note, Result
from benchmarks.shapes import UNETS
from kolors_kernel import discover

if TYPE_CHECKING:
    from benchmarks.on_device.rows import Time, Timed

threads = 1
KINDS = ("attention", "group_norm_silu", "geglu", "add_layer_norm", "rms_norm", "rotary", "quantized_linear")
QUANTILES = [0.5, 0.2, 0.8]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare what is measured."""
    parser.add_argument("--dry", action="store_true", help="launch nothing, and need no GPU")
    parser.add_argument("--family", choices=TARGETS, default="sm_90", help="for which a dry run compiles")
    parser.add_argument("--unet", nargs="+", choices=UNETS, default=["kolors_1024", "kolors_512"], help="whose shapes")
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=list(KINDS), help="these ops alone")
    parser.add_argument("--dtype", nargs="+", default=["float32", "float16", "bfloat16"], help="names of torch dtypes")
    parser.add_argument("--milliseconds", type=int, default=100, help="how long each call is repeated for")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw the times, a file for each dtype")


def unable(options: argparse.Namespace) -> str | None:
    """Say why nothing can be measured here, or return None."""
    import torch

    if options.dry or torch.cuda.is_available():
        return None
    return "torch sees no GPU: --dry plans and compiles every launch without one, for the GPUs of --family"


def results(options: argparse.Namespace) -> Iterator[Result]:
    """Check, measure and draw. Ends the process with exit code 1 after all that, where a kernel was wrong."""
    import torch

    from benchmarks.on_device.calls import ODD, of_nets, to_check
    from benchmarks.on_device.machine import device_facts
    from benchmarks.on_device.measuring import checked, timed, unchecked

    facts, wrong = device_facts(dry=options.dry), list[str]()
    drawn: list[Timed] = []
    found = list(_kinds(options.kind))
    yield from (each for each in found if isinstance(each, Note))
    options.kind = [each for each in found if not isinstance(each, Note)]
    nets = of_nets(options.unet, options.kind)
    if options.dry:
        from benchmarks.on_device.planning import as_if_on, compiled

        yield from unchecked([trial for trial in ODD if trial.kind in options.kind], options.dtype, facts)
        for launch in compiled(options.kind, options.dtype, options.family):
            yield launch
            wrong += [launch.case] if isinstance(launch, Note) or launch.wrong else []
        with as_if_on(options.family, options.kind):
            yield from _kept(timed(nets, options.dtype, facts, torch.device("meta"), None), drawn)
    else:
        device = torch.device("cuda")
        for check in checked(to_check(options.unet, options.kind), options.dtype, facts, device):
            yield check
            wrong += [] if isinstance(check, Note) or check.wrong is None else [f"{check.case} {check.dtype}"]
        yield from _kept(timed(nets, options.dtype, facts, device, _clock(options.milliseconds)), drawn)
    if options.plot:
        yield from _drawn(drawn, options.plot)
    if wrong:
        print(f"wrong: {len(wrong)}, the first {wrong[0]}", file=sys.stderr)
        raise SystemExit(1)


def _kinds(asked: Sequence[str]) -> Iterator[str | Note]:
    """Yield the kinds of ops that have kernels and are asked for, and a note for each that cannot be benched."""
    having = {kind for kind, name in discover().components if name == "triton"}
    for kind in asked:
        yield kind if kind in having else Note("gpu", kind, "triton", "there is no such component")
    for kind in sorted(having - set(KINDS)):
        yield Note("gpu", kind, "triton", "this bench knows no calls of this kind of op")


def _kept(rows: Iterator[Timed | Note], into: list[Timed]) -> Iterator[Timed | Note]:
    for row in rows:
        if not isinstance(row, Note):
            into.append(row)
        yield row


def _drawn(rows: Sequence[Timed], path: Path) -> Iterator[Note]:
    from benchmarks.on_device.plot import draw

    try:
        files = draw(rows, path)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        yield Note("gpu", "the plot", "", "matplotlib is not installed: pip install 'kolors-kernel[plot]'")
        return
    print(f"drawn: {', '.join(map(str, files)) or 'nothing, since nothing was timed'}")


def _clock(milliseconds: int) -> Callable[[Callable[[], object]], Time]:
    from triton.testing import do_bench

    from benchmarks.on_device.rows import Time

    def time(work: Callable[[], object]) -> Time:
        return Time(*map(float, do_bench(work, rep=milliseconds, quantiles=QUANTILES)))

    return time
