"""A part of ours and the same part of diffusers, ready to run in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from benchmarks.measure import Sample, calls, take_turns

if TYPE_CHECKING:
    from torch import Tensor

EAGER = "diffusers"
"""The peer that goals are set against: diffusers as it comes."""
EXACT = 1e-5
"""How far float32 may be off, relative to the largest value."""
AT_LEAST = 0.05  # seconds in one sample, so that the clock's grain does not show


class Unavailable(Exception):
    """Why a case cannot run here."""


@dataclass(frozen=True)
class Contest:
    """What runs in turns, and how exact ours is.

    run: returns the samples of `rounds`, ours under its name and the peers under theirs, EAGER among them. error: the
    largest difference from EAGER, relative to its largest value; limit: what it may be. figures: what else was found
    of exactness. gflop: what ours and EAGER compute, 1e9 FLOP.
    """

    ours_name: str
    run: Callable[[int], Mapping[str, Sequence[Sample]]]
    error: Callable[[], float]
    limit: float
    gflop: tuple[float, float]
    dtype: str
    figures: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    unavailable: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


def in_turns(functions: Mapping[str, Callable[[], object]]) -> Callable[[int], Mapping[str, Sequence[Sample]]]:
    """Return what takes a number of rounds and calls the functions in turns."""

    def run(rounds: int) -> Mapping[str, Sequence[Sample]]:
        samplers = [calls(function, at_least=AT_LEAST) for function in functions.values()]
        return dict(zip(functions, take_turns(samplers, rounds=rounds), strict=True))

    return run


def difference(found: Tensor, right: Tensor) -> float:
    """Return the largest difference relative to the largest value of what is right."""
    return float((found.double() - right.double()).abs().max() / right.double().abs().max())


def gflop(function: Callable[[], object]) -> float:
    """Return what a call computes in matrix products and convolutions, in 1e9 FLOP."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:  # the kernel for CPUs is not counted
        function()
    return counter.get_total_flops() / 1e9
