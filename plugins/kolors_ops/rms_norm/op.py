"""RMS norm as an operator of torch, with kernels in Triton."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kolors_ops.operators import (
    DTYPES,
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
from kolors_ops.rms_norm.reference import gradients, normalised

KERNELS = ("rms_norm_forward", "rms_norm_backward")
PARTS = 512
"""Into how many parts, at most, the rows are cut whose gradients of the weight are summed one after another."""


class TritonRMSNorm:
    """RMS norm in one kernel, its gradient in another; `table` is the file with the launches ("": that which ships).

    The weight may be of another dtype than x, as a float32 one beside half precision. In the table, a width is that of
    the rows.
    """

    def __init__(self, table: str = "") -> None:
        self.table = opened(table)

    def __call__(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """[..., D] with weight [D] -> [..., D]. Raises ValueError for a call it refuses."""
        if reason := self.refuses(x, weight, eps):
            raise ValueError(f"rms_norm 'triton' refuses: {reason}")
        made: Tensor = rms_norm(x, weight, eps, self.table)[0]
        return made

    def refuses(self, x: Tensor, weight: Tensor, eps: float) -> str | None:
        """Say why this call cannot run here (device, dtypes, shapes, strides), or return None."""
        if reason := unsupported(x):
            return reason
        if not are_rows(x):
            return f"its rows, of strides {x.stride()}, are not evenly spaced with their elements side by side"
        width = x.shape[-1]
        if weight.shape != (width,) or weight.stride() != (1,):
            return f"the weight, of shape {[*weight.shape]}, is not {width} elements side by side"
        if weight.dtype not in DTYPES:
            return f"the weight is {weight.dtype}, of which kernels read no rows either"
        return lacks(self.table, KERNELS, x, width)


def plan_forward(x: Tensor, weight: Tensor, eps: float, out: Tensor, rstd: Tensor, pick: Pick) -> list[Launch]:
    """Plan out [..., D] and rstd [...] from x [..., D] and weight [D]."""
    from kolors_ops.rms_norm.kernel import rms_norm_forward

    rows = x.view(-1, x.shape[-1])
    row = pick("rms_norm_forward", x, rows.shape[1])
    tensors = {"x": rows, "weight": weight, "out": out, "rstd": rstd}
    sizes = {"x_stride": rows.stride(0), "D": rows.shape[1], "eps": eps}
    return [Launch(rms_norm_forward, (rows.shape[0],), {**tensors, **sizes}, row)]


def plan_backward(
    grad: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, out: Tensor, parts: Tensor, pick: Pick
) -> list[Launch]:
    """Plan out [..., D] and parts [P, D], whose sum is the gradient of the weight, from the gradient of the result."""
    from kolors_ops.rms_norm.kernel import rms_norm_backward

    rows = x.view(-1, x.shape[-1])
    row = pick("rms_norm_backward", x, rows.shape[1])
    tensors = {"grad": grad, "x": rows, "weight": weight, "rstd": rstd, "out": out, "parts": parts}
    sizes = {"R": rows.shape[0], "D": rows.shape[1], "PER": -(-rows.shape[0] // PARTS)}
    return [Launch(rms_norm_backward, (parts.shape[0],), {**tensors, "x_stride": rows.stride(0), **sizes}, row)]


def samples(dtype: torch.dtype) -> Iterator[Sample]:
    """Yield forward and backward at the rows of ChatGLM3 for a prompt of 128 tokens, and at the widest taken."""
    for tokens, width in ((128, 4096), (64, 8192)):
        x, weight = (torch.empty(*shape, dtype=dtype, device="meta") for shape in ((tokens, width), (width,)))
        out, rstd = _empty(x)
        yield Sample(f"{tokens}x{width}", partial(plan_forward, x, weight, 1e-5, out, rstd))
        yield Sample(f"{tokens}x{width} backward", partial(plan_backward, out, x, weight, rstd, out, _parts(x)))


def _empty(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[:-1], dtype=torch.float32)


def _parts(x: Tensor) -> Tensor:
    rows = x.numel() // x.shape[-1]
    per = -(-rows // PARTS)
    return x.new_empty(-(-rows // per), x.shape[-1], dtype=torch.float32)


def _forward(x: Tensor, weight: Tensor, eps: float, table: str) -> tuple[Tensor, Tensor]:
    out, rstd = _empty(x)
    launch(lambda pick: plan_forward(x, weight, eps, out, rstd, pick), x, table)
    return out, rstd


def _backward(grad: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, table: str) -> tuple[Tensor, Tensor]:
    upper, out, parts = grad.contiguous(), x.new_empty(x.shape), _parts(x)
    launch(lambda pick: plan_backward(upper, x, weight, rstd, out, parts, pick), x, table)
    return out, parts.sum(0).to(weight.dtype)


def _backward_reference(grad: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, table: str) -> tuple[Tensor, Tensor]:
    return gradients(grad.contiguous(), x.contiguous(), weight, rstd)


rms_norm = operator(
    "rms_norm(Tensor x, Tensor weight, float eps, str table) -> (Tensor, Tensor)",
    fake=lambda x, weight, eps, table: _empty(x),
    reference=lambda x, weight, eps, table: normalised(x.contiguous(), weight, eps),
    kernels=_forward,
)
rms_norm_backward = operator(
    "rms_norm_backward(Tensor grad, Tensor x, Tensor weight, Tensor rstd, str table) -> (Tensor, Tensor)",
    fake=lambda grad, x, weight, rstd, table: (x.new_empty(x.shape), weight.new_empty(weight.shape)),
    reference=_backward_reference,
    kernels=_backward,
)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, ctx.table = inputs
    ctx.save_for_backward(x, weight, output[1])
    ctx.set_materialize_grads(False)


def _go_back(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None, None
    return *rms_norm_backward(grad, *ctx.saved_tensors, ctx.table), None, None


differentiable(rms_norm, keep=_keep, backward=_go_back)
differentiable_once(rms_norm_backward)
