"""Text encoder, U-Net step and training step beside diffusers with the same weights, in one interleaved run.

Times are CPU time of one thread. A case's first row is ours beside diffusers as it comes, which its goal is set
against; further rows are ours beside the best that diffusers' users get. A share of the peak is what was computed in
that time, beside the rate of large matrix products in the same run and precision.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache

from benchmarks.measure import Comparison, compared
from benchmarks.peers import encoder, training, unet
from benchmarks.peers.contest import EAGER, Contest, Unavailable
from benchmarks.peers.peak import peak
from benchmarks.report import Note, Result, timed_row

threads = 1


@dataclass(frozen=True)
class Case:
    """A case: how often faster than diffusers ours is to be, and the contest that shows it."""

    goal: float
    contest: Callable[[argparse.Namespace], AbstractContextManager[Contest]]


def _encoder(dtype: str, tokens: int) -> Callable[[argparse.Namespace], AbstractContextManager[Contest]]:
    return lambda options: encoder.contest(_size(options), dtype, tokens, compiled=options.compile)


def _unet(dtype: str, *, openvino: bool) -> Callable[[argparse.Namespace], AbstractContextManager[Contest]]:
    return lambda options: unet.contest(_size(options), dtype, openvino=openvino, compiled=options.compile)


def _training(autocast: str) -> Callable[[argparse.Namespace], AbstractContextManager[Contest]]:
    return lambda options: training.contest(_size(options), autocast)


def _size(options: argparse.Namespace) -> str:
    return "tiny" if options.quick else "small"


FULL = "unet_full_bf16"
CASES = {
    "text_encoder_fp32_20": Case(18, _encoder("float32", 20)),
    "text_encoder_fp32_60": Case(10, _encoder("float32", 60)),
    "text_encoder_bf16_20": Case(8, _encoder("bfloat16", 20)),
    "unet_fp32_torch": Case(1.9, _unet("float32", openvino=False)),
    "unet_fp32_openvino": Case(2.6, _unet("float32", openvino=True)),
    "unet_bf16_torch": Case(1.35, _unet("bfloat16", openvino=False)),
    "unet_bf16_openvino": Case(2, _unet("bfloat16", openvino=True)),
    FULL: Case(1.3, lambda options: unet.contest("full", "bfloat16", openvino=False, compiled=options.compile)),
    "train_step_fp32": Case(1.5, _training("off")),
    "train_step_bf16": Case(2, _training("bfloat16")),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare what is measured."""
    parser.add_argument("--case", nargs="+", choices=CASES, help="these alone (default: all but the full-size one)")
    parser.add_argument("--full", action="store_true", help="the U-Net of 2.6 billion parameters too: 16 GiB, minutes")
    parser.add_argument("--compile", action="store_true", help="diffusers compiled by torch too: minutes a case")
    parser.add_argument("--quick", action="store_true", help="tiny nets and few rounds, to see that all works")
    parser.add_argument("--rounds", type=int, default=7, help="how many interleaved rounds the medians are of")


def results(options: argparse.Namespace) -> Iterator[Result]:
    """Measure every case that was asked for."""
    import torch

    if options.quick:
        options.rounds = 2
    chosen = options.case or [name for name in CASES if name != FULL or options.full]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for name in chosen:
            try:
                with CASES[name].contest(options) as contest:
                    yield from _rows(name, CASES[name].goal, contest, options.rounds)
            except Unavailable as reason:
                yield Note("diffusers", name, "", str(reason))
            gc.collect()  # the nets of a case, before the next one's
    finally:
        torch.set_num_threads(before)


_peak = cache(peak)


def _rows(case: str, goal: float, contest: Contest, rounds: int) -> Iterator[Result]:
    samples = contest.run(rounds)
    error = contest.error()
    for name in samples:
        if name != "ours":
            measured = compared(samples["ours"], samples[name])
            yield _row(case, goal if name == EAGER else 1.0, contest, name, measured, error)
    for name, reason in contest.unavailable.items():
        yield Note("diffusers", case, f"beside {name}", reason)


def _row(case: str, goal: float, contest: Contest, name: str, measured: Comparison, error: float) -> Result:
    most = _peak(contest.dtype)
    share = contest.gflop[0] / measured.ours.cpu / most
    figures = {
        "goal": goal,
        "met": int(measured.ratio >= goal and error <= contest.limit),
        "error_limit": contest.limit,
        "peak_gflops": most,
        "gflop": contest.gflop[0],
        "peer_gflop": contest.gflop[1],
        "peak_share": share,
        "peer_peak_share": contest.gflop[1] / measured.peer.cpu / most,
        **contest.figures,
    }
    verdict = "met" if figures["met"] else "missed" if measured.ratio < goal else f"off by {error:.0e}"
    remark = f"goal {goal:g}: {verdict}, {share:.0%} of the peak"
    names = (contest.ours_name, name)
    return timed_row("diffusers", case, names=names, measured=measured, error=error, extra=figures, remark=remark)
