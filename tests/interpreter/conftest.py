"""Kernels in Triton's interpreter: what it computes wrongly is mended, and what it does not notice is looked for.

It must be asked for before Triton is imported, so these tests have a process of their own: `make kernels`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from kolors_ops.operators import INTERPRETED
from torch import Tensor

if not INTERPRETED:
    raise pytest.UsageError("these tests run as TRITON_INTERPRET=1 pytest tests/interpreter, or by make kernels")

from benchmarks.aot.interpreting import RightBuilder, mend


@pytest.fixture(autouse=True)
def right_interpreter(monkeypatch: pytest.MonkeyPatch) -> RightBuilder:
    """bfloat16 rounds as on a GPU, and an int32 that overflows is an error."""
    return mend(monkeypatch.setattr)


@pytest.fixture
def in_orders(right_interpreter: RightBuilder) -> Callable[[Callable[[], Sequence[Tensor]]], None]:
    """A check that work gives the same bits in whichever order programs run: no two write to one place."""

    def check(work: Callable[[], Sequence[Tensor]]) -> None:
        found = []
        for order in (None, 1, 2):
            right_interpreter.order = order
            found.append([t.clone() for t in work()])
        right_interpreter.order = None
        for other in found[1:]:
            for one, another in zip(found[0], other, strict=True):
                assert torch.equal(one.nan_to_num(nan=7e7), another.nan_to_num(nan=7e7))

    return check


MARGIN = 4096
"""Poisoned elements before and behind a fenced tensor."""


class Fence:
    """Tensors with poison around them: reading it makes a result NaN, writing to it is found by `check`."""

    def __init__(self) -> None:
        self.fenced: list[tuple[Tensor, Tensor]] = []

    def empty(self, like: Tensor, shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return a tensor of this shape and these strides, NaN all over where it has NaNs."""
        extent = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) if 0 not in shape else 0
        poison = torch.nan if dtype.is_floating_point else torch.iinfo(dtype).max // 2
        whole = torch.full((extent + 2 * MARGIN,), poison, dtype=dtype, device=like.device)
        made = whole.as_strided(tuple(shape), tuple(stride), MARGIN)
        self.fenced.append((whole, made))
        return made

    def copy(self, t: Tensor) -> Tensor:
        """Return a copy with the strides of t; what lies between the elements of a view is poison too."""
        return self.empty(t, t.shape, t.stride(), t.dtype).copy_(t.detach())

    def check(self) -> None:
        """Fail where something was written beside a fenced tensor."""
        assert self.fenced
        for whole, made in self.fenced:
            outside = torch.ones(whole.shape, dtype=torch.bool)
            outside.as_strided(made.shape, made.stride(), MARGIN).fill_(False)
            kept = whole[outside]
            intact = kept.isnan() if kept.is_floating_point() else kept == torch.iinfo(kept.dtype).max // 2
            assert intact.all(), f"written beside a tensor of shape {tuple(made.shape)}"


@pytest.fixture
def fence(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fence]:
    """What `Tensor.new_empty` and `torch.empty_like` allocate in a test is fenced, and checked at its end."""
    made = Fence()
    new_empty, empty_like = torch.Tensor.new_empty, torch.empty_like

    def fenced(plain: Tensor) -> Tensor:
        if plain.is_meta or not plain.numel():
            return plain
        return made.empty(plain, plain.shape, plain.stride(), plain.dtype)

    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *shape, **how: fenced(new_empty(self, *shape, **how)))
    monkeypatch.setattr(torch, "empty_like", lambda t, **how: fenced(empty_like(t, **how)))
    yield made
    monkeypatch.undo()
    made.check()


def distance(found: Tensor, exact: Tensor) -> float:
    """Return the largest distance from the float64 values; NaN where there is a NaN."""
    return float((found.double() - exact).abs().max()) if found.numel() else 0.0


@pytest.fixture
def as_right_as_torch() -> Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]], None]:
    """A check that results are at most twice as far from the float64 ones as torch's own in the same dtype.

    Half a step of the dtype at the largest value is always allowed: so much the best result is rounded. In float32,
    where nothing is rounded at the end that was not rounded before, two steps are: of a few sums torch's own may happen
    to be exact.
    """

    def check(found: Sequence[Tensor], exact: Sequence[Tensor], torchs: Sequence[Tensor]) -> None:
        for i, (ours, right, theirs) in enumerate(zip(found, exact, torchs, strict=True)):
            assert ours.shape == right.shape
            assert ours.dtype == theirs.dtype
            step = torch.finfo(ours.dtype).eps * float(right.abs().max())
            limit = max(2 * distance(theirs, right), 2 * step if ours.dtype == torch.float32 else step / 2)
            assert distance(ours, right) <= limit, f"result {i}: {distance(ours, right):.3g} off, allowed {limit:.3g}"

    return check
