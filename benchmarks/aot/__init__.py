"""What the kernels become on GPUs of six families, compiled without one, beside the kernels of other projects.

Nothing is timed: registers, spills, programs per multiprocessor, matrix instructions and the width of loads are facts
of the compiled binary. A row stands for one launch that an op plans for a sample. `ours` is how many programs fit on a
multiprocessor, `peer` how many the table of launches states.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from importlib.util import find_spec
from tempfile import TemporaryDirectory

from benchmarks.report import Note, Result

threads = 1  # in each process; --processes says how many compile
PARTS = ("ours", "peers", "errors")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare what is compiled."""
    families = ("sm_80", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942")
    dtypes = ("float32", "float16", "bfloat16")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS, help="the ops, peers beside them, errors")
    parser.add_argument("--op", nargs="+", help="these ops alone, of those that have samples")
    parser.add_argument("--dtype", nargs="+", choices=dtypes, default=dtypes, help="of what the ops are given")
    parser.add_argument("--family", nargs="+", choices=families, default=families, help="of GPUs, for the ops")
    parser.add_argument("--peer-dtype", nargs="+", choices=dtypes, default=["bfloat16"], help="the same beside peers")
    parser.add_argument("--peer-family", nargs="+", choices=families, default=["sm_80", "sm_90"], help="the same")
    parser.add_argument("--processes", type=int, default=2, help="how many compile at once")
    parser.add_argument("--limit", type=float, default=120, help="seconds of CPU that a peer's kernel may take")
    parser.add_argument("--cache", metavar="DIR", help="keep what was compiled (default: nothing is kept)")


def results(options: argparse.Namespace) -> Iterator[Result]:
    """Compile everything that was asked for. Raises RuntimeError where TRITON_INTERPRET is set."""
    if find_spec("triton") is None:
        yield Note("aot", "all", "", "triton is not installed: pip install 'kolors-kernel[triton]'")
        return
    from benchmarks.aot import beside, errors, ours
    from benchmarks.aot.probe import refuse_the_interpreter

    refuse_the_interpreter()
    with TemporaryDirectory() as temporary:
        options.cache = os.path.abspath(options.cache or temporary)
        for name, part in (("ours", ours), ("peers", beside), ("errors", errors)):
            if name in options.part:
                yield from part.results(options)
