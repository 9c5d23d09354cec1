"""Adding and layer norm as operators of torch, with kernels in Triton."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kolors_ops.add_layer_norm.reference import gradients, normalised
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

KERNELS = ("layer_norm_forward", "layer_norm_backward")
PARTS = 512
"""Into how many parts, at most, the rows are cut whose gradients of the parameters are summed one after another."""


class TritonAddLayerNorm:
    """The sum and its layer norm in one kernel, their gradient in another; `table` is the file with the launches
    ("": that which ships).

    Weight and bias may be of another dtype than x, as float32 ones beside half precision. In the table, a width is
    that of the rows.
    """

    def __init__(self, table: str = "") -> None:
        self.table = opened(table)

    def __call__(
        self, x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return x + added, or x itself, and its layer norm: [..., D] each, with weight and bias [D].

        Raises ValueError for a call it refuses.
        """
        if reason := self.refuses(x, added, weight, bias, eps):
            raise ValueError(f"add_layer_norm 'triton' refuses: {reason}")
        if added is None:
            return x, layer_norm(x, weight, bias, eps, self.table)[0]
        total, out, _, _ = add_layer_norm(x, added, weight, bias, eps, self.table)
        return total, out

    def refuses(self, x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> str | None:
        """Say why this call cannot run here (device, dtypes, shapes, strides), or return None."""
        if reason := unsupported(x):
            return reason
        if added is not None and (added.dtype != x.dtype or added.shape != x.shape):
            return f"what is added is {_named(added)}, and x is {_named(x)}"
        for rows in (x,) if added is None else (x, added):
            if not are_rows(rows):
                return f"rows, of strides {rows.stride()}, are not evenly spaced with their elements side by side"
        width = x.shape[-1]
        for parameter in (weight, bias):
            if parameter.shape != (width,) or parameter.stride() != (1,):
                return f"weight and bias are {_named(weight)} and {_named(bias)}, not {width} elements side by side"
        if weight.dtype != bias.dtype or weight.dtype not in DTYPES:
            return f"weight and bias are {weight.dtype} and {bias.dtype}; kernels take one of their own dtypes for both"
        return lacks(self.table, KERNELS, x, width)


def plan_forward(
    x: Tensor, added: Tensor | None, parameters: tuple[Tensor, Tensor], eps: float, made: tuple[Tensor, ...], pick: Pick
) -> list[Launch]:
    """Plan made = total, out [..., D], mean, rstd [...] from x and what is added [..., D], and weight and bias [D].

    Where nothing is added, total is not written.
    """
    from kolors_ops.add_layer_norm.kernel import layer_norm_forward

    weight, bias = parameters
    width = x.shape[-1]
    total, out, mean, rstd = made
    rows, more = (t.view(-1, width) for t in (x, x if added is None else added))
    tensors = {"x": rows, "added": more, "weight": weight, "bias": bias}
    results = {"total": total, "out": out, "mean": mean, "rstd": rstd}
    sizes = {"x_stride": rows.stride(0), "added_stride": more.stride(0), "D": width, "eps": eps}
    row = pick("layer_norm_forward", x, width)
    arguments = {**tensors, **results, **sizes, "ADDED": added is not None}
    return [Launch(layer_norm_forward, (rows.shape[0],), arguments, row)]


def plan_backward(
    grad: Tensor, beside: Tensor | None, kept: tuple[Tensor, ...], out: Tensor, parts: Tensor, pick: Pick
) -> list[Launch]:
    """Plan out [..., D] and parts [2, P, D], whose sums are the gradients of weight and bias.

    From the gradient of the norm, that which comes to the sum from elsewhere, and kept = total, weight, mean, rstd.
    """
    from kolors_ops.add_layer_norm.kernel import layer_norm_backward

    total, weight, mean, rstd = kept
    width = total.shape[-1]
    rows = total.view(-1, width)
    tensors = {"grad": grad, "beside": grad if beside is None else beside, "total": rows, "weight": weight}
    results = {"mean": mean, "rstd": rstd, "out": out, "parts": parts}
    sizes = {"total_stride": rows.stride(0), "R": rows.shape[0], "D": width, "PER": -(-rows.shape[0] // PARTS)}
    row = pick("layer_norm_backward", total, width)
    arguments = {**tensors, **results, **sizes, "BESIDE": beside is not None}
    return [Launch(layer_norm_backward, (parts.shape[1],), arguments, row)]


def samples(dtype: torch.dtype) -> Iterator[Sample]:
    """Yield forward and backward at the shapes of the SDXL U-Net for a picture of 1024 x 1024 and a batch of two.

    Beside them, at the widest rows that are taken.
    """
    for tokens, width in ((4096, 640), (1024, 1280), (64, 8192)):
        x, weight = (torch.empty(*shape, dtype=dtype, device="meta") for shape in ((2, tokens, width), (width,)))
        made = (torch.empty_like(x), *_empty(x))
        for added in (x, None) if width < 8192 else (x,):
            shape = f"{tokens}x{width}" + (" sum" if added is not None else "")
            forward = partial(plan_forward, x, added, (weight, weight), 1e-5, made)
            yield Sample(shape, forward)
            kept = (x, weight, *made[2:])
            yield Sample(f"{shape} backward", partial(plan_backward, x, added, kept, torch.empty_like(x), _parts(x)))


def _named(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {[*x.shape]}"


def _empty(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean, rstd = (x.new_empty(x.shape[:-1], dtype=torch.float32) for _ in range(2))
    return x.new_empty(x.shape), mean, rstd


def _empty_gradients(total: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return total.new_empty(total.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape)


def _parts(total: Tensor) -> Tensor:
    rows = total.numel() // total.shape[-1]
    per = -(-rows // PARTS)
    return total.new_empty(2, -(-rows // per), total.shape[-1], dtype=torch.float32)


def _add_forward(
    x: Tensor, added: Tensor, weight: Tensor, bias: Tensor, eps: float, table: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    made = (x.new_empty(x.shape), *_empty(x))
    launch(lambda pick: plan_forward(x, added, (weight, bias), eps, made, pick), x, table)
    return made


def _forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float, table: str) -> tuple[Tensor, Tensor, Tensor]:
    made = _empty(x)
    launch(lambda pick: plan_forward(x, None, (weight, bias), eps, (made[0], *made), pick), x, table)
    return made


def _backward(
    grad: Tensor, beside: Tensor | None, total: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, table: str
) -> tuple[Tensor, Tensor, Tensor]:
    out, parts = total.new_empty(total.shape), _parts(total)
    upper, more = grad.contiguous(), None if beside is None else beside.contiguous()
    kept = (total, weight, mean, rstd)
    launch(lambda pick: plan_backward(upper, more, kept, out, parts, pick), total, table)
    to_weight, to_bias = (part.sum(0).to(weight.dtype) for part in parts)
    return out, to_weight, to_bias


def _add_reference(
    x: Tensor, added: Tensor, weight: Tensor, bias: Tensor, eps: float, table: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    total = (x + added).contiguous()
    return total, *normalised(total, weight, bias, eps)


def _reference(x: Tensor, weight: Tensor, bias: Tensor, eps: float, table: str) -> tuple[Tensor, Tensor, Tensor]:
    return normalised(x.contiguous(), weight, bias, eps)


def _backward_reference(*tensors: Any) -> tuple[Tensor, Tensor, Tensor]:
    out, to_weight, to_bias = gradients(*tensors[:-1])
    return out.contiguous(), to_weight, to_bias


add_layer_norm = operator(
    "add_layer_norm(Tensor x, Tensor added, Tensor weight, Tensor bias, float eps, str table)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    fake=lambda x, added, weight, bias, eps, table: (x.new_empty(x.shape), *_empty(x)),
    reference=_add_reference,
    kernels=_add_forward,
)
layer_norm = operator(
    "layer_norm(Tensor x, Tensor weight, Tensor bias, float eps, str table) -> (Tensor, Tensor, Tensor)",
    fake=lambda x, weight, bias, eps, table: _empty(x),
    reference=_reference,
    kernels=_forward,
)
layer_norm_backward = operator(
    "layer_norm_backward(Tensor grad, Tensor? beside, Tensor total, Tensor weight, Tensor mean, Tensor rstd, str table)"
    " -> (Tensor, Tensor, Tensor)",
    fake=lambda grad, beside, total, weight, mean, rstd, table: _empty_gradients(total, weight),
    reference=_backward_reference,
    kernels=_backward,
)


def _keep_sum(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    total, _, mean, rstd = output
    ctx.table = inputs[-1]
    ctx.save_for_backward(total, inputs[2], mean, rstd)
    ctx.set_materialize_grads(False)


def _sum_goes_back(ctx: Any, beside: Tensor | None, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return beside, beside, None, None, None, None
    out, to_weight, to_bias = layer_norm_backward(grad, beside, *ctx.saved_tensors, ctx.table)
    return out, out, to_weight, to_bias, None, None


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _, _, ctx.table = inputs
    ctx.save_for_backward(x, weight, *output[1:])
    ctx.set_materialize_grads(False)


def _go_back(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None, None, None
    return *layer_norm_backward(grad, None, *ctx.saved_tensors, ctx.table), None, None


differentiable(add_layer_norm, keep=_keep_sum, backward=_sum_goes_back)
differentiable(layer_norm, keep=_keep, backward=_go_back)
differentiable_once(layer_norm_backward)
