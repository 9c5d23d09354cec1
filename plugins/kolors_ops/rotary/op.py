"""Rotary positions as an operator of torch, with a kernel in Triton."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kolors_ops.operators import Launch, Pick, Sample, differentiable, lacks, launch, opened, operator, unsupported
from kolors_ops.rotary.reference import turned

KERNELS = ("rotary_turn",)


class TritonRotary:
    """Heads turned in one kernel, which turns their gradient back; `table` is the file with the launches
    ("": that which ships).

    In the table, a width is that of the heads.
    """

    def __init__(self, table: str = "") -> None:
        self.table = opened(table)

    def __call__(self, x: Tensor, turns: Tensor) -> Tensor:
        """Turn neighbouring pairs of each head of x [R, A, E] by turns [R, E / 2] -> [R, A, E].

        Raises ValueError for a call it refuses.
        """
        if reason := self.refuses(x, turns):
            raise ValueError(f"rotary 'triton' refuses: {reason}")
        made: Tensor = rotary(x, turns, False, self.table)
        return made

    def refuses(self, x: Tensor, turns: Tensor) -> str | None:
        """Say why this call cannot run here (device, dtypes, shapes, strides, a gradient of turns), or return None."""
        if reason := unsupported(x):
            return reason
        if turns.dtype != torch.complex64:
            return f"the turns are {turns.dtype}, and kernels turn by complex64"
        if turns.requires_grad and torch.is_grad_enabled():
            return "the turns require a gradient, which kernels give to x alone"
        if x.ndim != 3 or turns.shape != (x.shape[0], x.shape[2] / 2):
            return f"x is {[*x.shape]} and its turns {[*turns.shape]}, not [R, A, E] and [R, E / 2]"
        if not x.numel() or x.stride(2) != 1 or turns.stride(1) != 1:
            return f"in x {[*x.shape]} of strides {x.stride()}, or in its turns of {turns.stride()}, pairs lie apart"
        return lacks(self.table, KERNELS, x, x.shape[2])


def plan(x: Tensor, turns: Tensor, out: Tensor, pick: Pick, *, back: bool) -> list[Launch]:
    """Plan out [R, A, E] from x [R, A, E] and turns [R, E / 2, 2], cosines beside sines; `back` turns it back."""
    from kolors_ops.rotary.kernel import rotary_turn

    count, heads, width = x.shape
    row = pick("rotary_turn", x, width)
    strides = {"x_row": x.stride(0), "x_head": x.stride(1), "turns_row": turns.stride(0)}
    arguments = {"x": x, "turns": turns, "out": out, **strides, "A": heads, "E": width, "BACK": back}
    return [Launch(rotary_turn, (count, -(-heads // row.blocks["HEADS"])), arguments, row)]


def samples(dtype: torch.dtype) -> Iterator[Sample]:
    """Yield forward and backward at the heads of ChatGLM3 for a prompt of 128 tokens, and at the widest taken."""
    for heads, more, width in ((34, 2, 128), (8, 0, 256)):
        x = torch.empty(128, heads + more, width, dtype=dtype, device="meta")[:, :heads]
        turns = torch.empty(128, width // 2, 2, dtype=torch.float32, device="meta")
        out = x.new_empty(x.shape)
        yield Sample(f"128x{heads}x{width}", partial(plan, x, turns, out, back=False))
        yield Sample(f"128x{heads}x{width} backward", partial(plan, out, turns, out, back=True))


def _reference(x: Tensor, turns: Tensor, back: bool, table: str) -> Tensor:
    return turned(x, turns.real, -turns.imag if back else turns.imag)


def _launched(x: Tensor, turns: Tensor, back: bool, table: str) -> Tensor:
    out, real = x.new_empty(x.shape), torch.view_as_real(turns)
    launch(lambda pick: plan(x, real, out, pick, back=back), x, table)
    return out


rotary = operator(
    "rotary(Tensor x, Tensor turns, bool back, str table) -> Tensor",
    fake=lambda x, turns, back, table: x.new_empty(x.shape),
    reference=_reference,
    kernels=_launched,
)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, bool, str], output: Tensor) -> None:
    _, turns, ctx.back, ctx.table = inputs
    ctx.save_for_backward(turns)


def _go_back(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    upper = grad if grad.stride(-1) == 1 else grad.contiguous()
    return rotary(upper, *ctx.saved_tensors, not ctx.back, ctx.table), None, None, None


differentiable(rotary, keep=_keep, backward=_go_back)
