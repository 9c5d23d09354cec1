"""How right peers' kernels and ours are, from Triton's interpreter in a process of its own: a row for each peer.

`ours` and `peer` are the largest differences from the result in float64, relative to its largest value, in steps of the
dtype at 1: half a step is the best that rounding allows. Half precision is rounded as a GPU does.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.report import Note, Result, Row

REMARKS = {
    "Liger-Kernel": "its rsqrt is Triton's, for the interpreter has no libdevice",
    "FlagGems": "its rsqrt is Triton's and its `and` of masks `&`, for the interpreter knows no better",
}


def results(options: argparse.Namespace) -> Iterator[Result]:
    """Compare ours with torch and with every peer. Raises RuntimeError when the process fails."""
    command = [sys.executable, "-m", "benchmarks.aot.interpreted"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None  # it was asked for
        for line in process.stdout:
            yield from _rows(json.loads(line))
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {process.returncode}")


def _rows(found: Mapping[str, Any]) -> Iterator[Result]:
    case, errors = f"{found['case']} {found['dtype']}", found["errors"]
    for name, reason in found["reasons"].items():
        yield Note("aot", case, name, reason)
    if "triton" not in errors:
        return
    mine = errors["triton"]
    for name, theirs in errors.items():
        if not math.isfinite(theirs):
            yield Note("aot", case, name, "its result has NaNs or infinities")
        elif name != "triton":
            ratio = theirs / mine if mine else 1.0 if not theirs else math.inf
            extra = {"dtype": found["dtype"], "torch_error": errors.get("torch", -1.0)}
            remark = REMARKS.get(name, "")
            yield Row("aot", case, "triton", mine, name, theirs, "steps", ratio, extra=extra, remark=remark)
