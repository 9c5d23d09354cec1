"""The work of the bench on a GPU: is every call right, and how long does it take us and the contenders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from kolors_ops.trials import Draw, Judge, Tape, Trial, implementation

from benchmarks.on_device.contenders import LIGER, OURS, compiling_anew, contenders
from benchmarks.on_device.rows import BENCH, Checked, Time, Timed
from benchmarks.report import Note


def checked(
    trials: Sequence[Trial], dtypes: Sequence[str], facts: Mapping[str, str], device: torch.device
) -> Iterator[Checked | Note]:
    """Yield of every call how far ours is from float64; a call that it refuses is a note with the reason."""
    for trial in trials:
        op = implementation(trial.kind, OURS)
        for dtype in dtypes:
            draw = Draw(device, getattr(torch, dtype))
            refused = op.refuses(*trial.arguments(draw), **trial.named)
            if refused is not None:
                yield Note(BENCH, f"{trial} {dtype}", OURS, refused)
                continue
            try:
                verdict = Judge(trial, draw).verdict(op)
            except torch.OutOfMemoryError:
                yield Note(BENCH, f"{trial} {dtype}", OURS, "float64 does not fit into this GPU's memory")
                continue
            yield Checked(str(trial), dtype, facts, verdict.distances, verdict.allowed, verdict.wrong)


def unchecked(trials: Sequence[Trial], dtypes: Sequence[str], facts: Mapping[str, str]) -> Iterator[Checked]:
    """Yield what would be checked, with what would be allowed: float64 and torch's own compute on the CPU."""
    for trial in trials:
        for dtype in dtypes:
            judge = Judge(trial, Draw(torch.device("cpu"), getattr(torch, dtype)))
            yield Checked(str(trial), dtype, facts, None, judge.allowed)


Clock: TypeAlias = Callable[[Callable[[], object]], Time]


def timed(
    nets: Mapping[str, Sequence[Trial]],
    dtypes: Sequence[str],
    facts: Mapping[str, str],
    device: torch.device,
    clock: Clock | None,
) -> Iterator[Timed | Note]:
    """Yield each call beside each contender, forward and backward; with no clock, on meta, without times."""
    absent = dict[str, None]()
    for net, trials in nets.items():
        for trial in trials:
            for dtype in dtypes:
                for row in _of_call(net, trial, Draw(device, getattr(torch, dtype)), facts, clock):
                    if not isinstance(row, Note):
                        yield row
                    elif row.line() not in absent:  # said once
                        absent[row.line()] = None
                        yield row


def _of_call(
    net: str, trial: Trial, draw: Draw, facts: Mapping[str, str], clock: Clock | None
) -> Iterator[Timed | Note]:
    op, arguments, dtype = implementation(trial.kind, OURS), trial.arguments(draw), str(draw.dtype)[6:]
    if (refused := op.refuses(*arguments, **trial.named)) is not None:
        yield Note(BENCH, f"{trial} {dtype}", OURS, refused)
        return
    from triton.errors import TritonError

    judge = _judge(trial, draw) if clock else None
    call = partial(Timed, net, trial.kind, str(trial), dtype, calls=trial.calls, device=facts)
    ours, off = _times(trial, op, arguments, clock), _off(judge, op)
    for peer in contenders(trial.kind):
        if isinstance(peer, str):
            yield Note(BENCH, trial.kind, LIGER, peer)
            continue
        asked = peer.op if clock else peer.plain
        try:
            with compiling_anew():
                theirs = _times(trial, asked, arguments, clock) if asked else dict.fromkeys(ours)
                theirs_off = _off(judge, peer.op)
        except (RuntimeError, ValueError, TritonError) as error:  # a contender's faults are not ours to stop for
            yield Note(
                BENCH, f"{trial} {dtype}", peer.name, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            )
            continue
        for way in ours:
            yield call(
                direction=way,
                peer_name=peer.name,
                peer_version=peer.version,
                ours=ours[way],
                peer=theirs[way],
                ours_off=off,
                peer_off=theirs_off,
            )


def _times(trial: Trial, op: Any, arguments: Any, clock: Clock | None) -> dict[str, Time | None]:
    """Return the times of a whole call and of its way back, if it has one, whose forward is not in it."""
    asked = trial.asks(op)
    times = {"forward": _time(torch.no_grad()(partial(asked, *arguments)), clock)}
    if trial.goes_back:
        times["backward"] = _time(Tape(trial.kind, asked, arguments).gradients, clock)
    return times


def _time(work: Callable[[], object], clock: Clock | None) -> Time | None:
    if clock is None:
        work()
        return None
    return clock(work)


def _judge(trial: Trial, draw: Draw) -> Judge | None:
    try:
        return Judge(trial.to_judge(), draw)
    except torch.OutOfMemoryError:
        return None


def _off(judge: Judge | None, op: Any) -> float | None:
    if judge is None:
        return None
    verdict = judge.verdict(op)
    return max((d / a for d, a in zip(verdict.distances, verdict.allowed, strict=True) if a), default=0.0)
