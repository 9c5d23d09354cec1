"""Recording what a library's own code launches, instead of launching it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from kolors_ops.operators import Launch
from kolors_ops.table import Row

WARPS, STAGES = 4, 3
"""What Triton takes for a launch that does not say."""


class Recorder:
    """Stands for a kernel, and keeps how it is launched."""

    def __init__(self, kernel: Any, launches: list[Launch]) -> None:
        self.kernel = kernel
        self.launches = launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **named: Any) -> None:
            given = {**dict(zip(self.kernel.arg_names, arguments, strict=False)), **named}
            warps, stages = given.pop("num_warps", WARPS), given.pop("num_stages", STAGES)
            self.launches.append(Launch(self.kernel, grid, given, row_for(self.kernel, warps, stages)))

        return launch


def row_for(kernel: Any, warps: int, stages: int) -> Row:
    """Return the row of a kernel that brings its blocks itself, promising nothing of programs per multiprocessor."""
    return Row(kernel=kernel.__name__, family="any", bits=16, width=1, blocks={}, warps=warps, stages=stages, ctas=1)


@contextmanager
def recording(module: ModuleType, kernels: Sequence[str]) -> Iterator[list[Launch]]:
    """Have the launches of a module's kernels be recorded: tensors without memory will do for its functions."""
    launches: list[Launch] = []
    before = {name: getattr(module, name) for name in kernels}
    for name, kernel in before.items():
        setattr(module, name, Recorder(kernel, launches))
    try:
        yield launches
    finally:
        for name, kernel in before.items():
            setattr(module, name, kernel)
