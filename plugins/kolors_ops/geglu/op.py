"""GEGLU as an operator of torch, with kernels in Triton."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kolors_ops.geglu.reference import ReferenceGEGLU, gradient, halves
from kolors_ops.operators import (
    Launch,
    Pick,
    Sample,
    are_rows,
    differentiable,
    differentiable_once,
    lacks,
    launch,
    opened,
    operator,
    unsupported,
)

KERNELS = ("geglu_forward", "geglu_backward")


class TritonGEGLU:
    """GEGLU in one kernel, and its gradient in another; `table` is the file with the launches ("": that which ships).

    In the table, a width is that of the result's rows.
    """

    def __init__(self, table: str = "") -> None:
        self.table = opened(table)

    def __call__(self, x: Tensor) -> Tensor:
        """[..., 2F] -> [..., F]. Raises ValueError when the last dimension is odd, and for a call it refuses."""
        if reason := self.refuses(x):
            raise ValueError(f"geglu 'triton' refuses: {reason}")
        made: Tensor = geglu(x, self.table)
        return made

    def refuses(self, x: Tensor) -> str | None:
        """Say why this call cannot run here (device, dtype, strides), or return None."""
        value, _ = halves(x)
        if reason := unsupported(x):
            return reason
        if not are_rows(x):
            return f"its rows, of strides {x.stride()}, are not evenly spaced with their elements side by side"
        return lacks(self.table, KERNELS, x, value.shape[-1])


def plan_forward(x: Tensor, out: Tensor, pick: Pick) -> list[Launch]:
    """Plan out [..., F] from x [..., 2F]."""
    from kolors_ops.geglu.kernel import geglu_forward

    rows, made = x.view(-1, x.shape[-1]), out.view(-1, out.shape[-1])
    row = pick("geglu_forward", x, made.shape[1])
    strides = {"x_stride": rows.stride(0), "out_stride": made.stride(0)}
    return [_over(geglu_forward, {"x": rows, "out": made, **strides, "F": made.shape[1]}, made, row)]


def plan_backward(grad: Tensor, x: Tensor, out: Tensor, pick: Pick) -> list[Launch]:
    """Plan out [..., 2F] from the gradient of the result [..., F] and x [..., 2F]."""
    from kolors_ops.geglu.kernel import geglu_backward

    upper, rows, made = (t.view(-1, t.shape[-1]) for t in (grad, x, out))
    row = pick("geglu_backward", x, upper.shape[1])
    strides = {"grad_stride": upper.stride(0), "x_stride": rows.stride(0), "out_stride": made.stride(0)}
    tensors = {"grad": upper, "x": rows, "out": made}
    return [_over(geglu_backward, {**tensors, **strides, "F": upper.shape[1]}, upper, row)]


def samples(dtype: torch.dtype) -> Iterator[Sample]:
    """Yield forward and backward at the shapes of the SDXL U-Net for a picture of 1024 x 1024 and a batch of two."""
    for tokens, width in ((4096, 2560), (1024, 5120)):
        x = torch.empty(2, tokens, 2 * width, dtype=dtype, device="meta")
        out = _empty(x)
        yield Sample(f"{tokens}x{width}", partial(plan_forward, x, out))
        yield Sample(f"{tokens}x{width} backward", partial(plan_backward, out, x, torch.empty_like(x)))


def _over(kernel: Any, arguments: dict[str, Any], rows: Tensor, row: Any) -> Launch:
    return Launch(kernel, (rows.shape[0], -(-rows.shape[1] // row.blocks["BLOCK"])), arguments, row)


def _empty(x: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], x.shape[-1] // 2)


def _forward(x: Tensor, table: str) -> Tensor:
    out = _empty(x)
    launch(lambda pick: plan_forward(x, out, pick), x, table)
    return out


def _backward(grad: Tensor, x: Tensor, table: str) -> Tensor:
    out, upper = x.new_empty(x.shape), grad.contiguous()
    launch(lambda pick: plan_backward(upper, x, out, pick), x, table)
    return out


geglu = operator(
    "geglu(Tensor x, str table) -> Tensor",
    fake=lambda x, table: _empty(x),
    reference=lambda x, table: ReferenceGEGLU()(x).contiguous(),
    kernels=_forward,
)
geglu_backward = operator(
    "geglu_backward(Tensor grad, Tensor x, str table) -> Tensor",
    fake=lambda grad, x, table: x.new_empty(x.shape),
    reference=lambda grad, x, table: gradient(grad, x),
    kernels=_backward,
)


def _keep(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
    x, ctx.table = inputs
    ctx.save_for_backward(x)


def _go_back(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return geglu_backward(grad, *ctx.saved_tensors, ctx.table), None


differentiable(geglu, keep=_keep, backward=_go_back)
differentiable_once(geglu_backward)
