"""Group norm and SiLU as operators of torch, with kernels in Triton."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kolors_ops.group_norm_silu.plans import (
    CHANNELS_LAST,
    COMBINED,
    TILED,
    Backward,
    Forward,
    format_of,
    plan_backward,
    plan_forward,
    scratch_backward,
    scratch_forward,
    strides_of,
)
from kolors_ops.group_norm_silu.reference import check_groups, gradient, norm_and_statistics
from kolors_ops.operators import (
    MOST_BLOCKS,
    Launch,
    Pick,
    Sample,
    differentiable,
    differentiable_once,
    lacks,
    launch,
    opened,
    operator,
    pick_from,
    unsupported,
)
from kolors_ops.table import family_of


class TritonGroupNormSiLU:
    """Group norm, and SiLU, in one kernel where a group fits a program, in three elsewhere; so is the gradient.

    `table` is the file with the launches ("": that which ships).
    """

    def __init__(self, table: str = "") -> None:
        self.table = opened(table)

    def __call__(
        self, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, *, silu: bool = True
    ) -> Tensor:
        """silu(group_norm(x)), or the norm alone, of x [B, C, ...] with weight and bias [C].

        Raises ValueError unless `groups` divides C, and for a call it refuses.
        """
        check_groups(x, groups)
        if reason := self.refuses(x, weight, bias, groups, eps, silu=silu):
            raise ValueError(f"group_norm_silu 'triton' refuses: {reason}")
        made: Tensor = group_norm_silu(x, weight, bias, groups, eps, silu, self.table)[0]
        return made

    def refuses(
        self, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, *, silu: bool = True
    ) -> str | None:
        """Say why this call cannot run here (device, dtypes, strides), or return None."""
        if reason := unsupported(x) or _unfit(x, weight, "weight") or _unfit(x, bias, "bias"):
            return reason
        if not x.numel():
            return f"x of shape {list(x.shape)} is empty"
        if x.shape[0] > MOST_BLOCKS:
            return f"a grid has no room for more than {MOST_BLOCKS} pictures: x is {list(x.shape)}"
        if strides_of(x) is None:
            return f"of x, of strides {x.stride()}, neither channels nor pixels lie side by side, evenly spaced"
        channels = x.shape[1]
        return lacks(self.table, TILED, x, channels, format_of(x)) or lacks(self.table, COMBINED, x, channels)


def _unfit(x: Tensor, parameter: Tensor, name: str) -> str | None:
    """Say why a parameter cannot be used with x, or return None."""
    if parameter.dtype not in (x.dtype, torch.float32):
        return f"{name} is {parameter.dtype}, which is neither x's {x.dtype} nor torch.float32"
    if parameter.shape != x.shape[1:2] or parameter.device != x.device:
        return f"{name} is {list(parameter.shape)} on {parameter.device}, x has {x.shape[1]} channels on {x.device}"
    return None if parameter.is_contiguous() else f"{name} has gaps: its stride is {parameter.stride(0)}"


def samples(dtype: torch.dtype) -> Iterator[Sample]:
    """Yield forward and backward at shapes of the SDXL U-Net for a picture of 1024 x 1024 and a batch of two.

    The last two are of smaller pictures, whose groups fit a program: of 512 x 512, forward alone, and of 256 x 256.
    """
    sizes = ((320, 128), (640, 64), (1280, 32), (2560, 32), (960, 128), (1920, 64), (1280, 16), (1280, 8))
    for layout in (torch.contiguous_format, torch.channels_last):
        for channels, side in sizes:
            x = torch.empty(2, channels, side, side, dtype=dtype, device="meta").to(memory_format=layout)
            shape = f"{channels}@{side}x{side} {format_of(x)}"
            yield Sample(shape, partial(_sample_forward, x))
            yield Sample(f"{shape} backward", partial(_sample_backward, x))


def _sample_forward(x: Tensor, pick: Pick) -> list[Launch]:
    weight = x.new_empty(x.shape[1])
    given = Forward(x, weight, torch.empty_like(weight), *_results(x, 32))
    return plan_forward(given, scratch_forward(x, 32, pick), 1e-5, True, pick)


def _sample_backward(x: Tensor, pick: Pick) -> list[Launch]:
    weight = x.new_empty(x.shape[1])
    out, mean, rstd = _results(x, 32)
    given = Backward(torch.empty_like(x), x, weight, torch.empty_like(weight), mean, rstd, out)
    return plan_backward(given, scratch_backward(x, 32, pick), True, pick)


def _empty(x: Tensor) -> Tensor:
    """Return memory for a tensor of the shape, dtype and memory format of x, without gaps."""
    if format_of(x) != CHANNELS_LAST:
        return x.new_empty(x.shape)
    return x.new_empty((x.shape[0], *x.shape[2:], x.shape[1])).movedim(-1, 1)


def _results(x: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return memory for the result, its mean and its rstd."""
    mean, rstd = (x.new_empty((x.shape[0], groups), dtype=torch.float32) for _ in range(2))
    return _empty(x), mean, rstd


def _gradients(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(x), torch.empty_like(weight), torch.empty_like(bias)


def _copied(found: tuple[Tensor, ...], into: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(to.copy_(one) for one, to in zip(found, into, strict=True))


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool, table: str
) -> tuple[Tensor, Tensor, Tensor]:
    results = _results(x, groups)
    given = Forward(x, weight, bias, *results)
    scratch = scratch_forward(x, groups, pick_from(table, family_of(x.device)))
    launch(lambda pick: plan_forward(given, scratch, eps, silu, pick), x, table)
    return results


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, silu: bool, table: str
) -> tuple[Tensor, Tensor, Tensor]:
    if strides_of(grad) is None or format_of(grad) != format_of(x):
        grad = _empty(x).copy_(grad)
    given = Backward(grad, x, weight, bias, mean, rstd, _empty(x))
    scratch = scratch_backward(x, mean.shape[1], pick_from(table, family_of(x.device)))
    launch(lambda pick: plan_backward(given, scratch, silu, pick), x, table)
    lift, gain = scratch[0].sum((1, 2))
    return given.out, gain.to(weight.dtype), lift.to(bias.dtype)


group_norm_silu = operator(
    "group_norm_silu(Tensor x, Tensor weight, Tensor bias, int groups, float eps, bool silu, str table)"
    " -> (Tensor, Tensor, Tensor)",
    fake=lambda x, weight, bias, groups, *settings: _results(x, groups),
    reference=lambda x, weight, bias, groups, eps, silu, table: _copied(
        norm_and_statistics(x, weight, bias, groups, eps, silu=silu), _results(x, groups)
    ),
    kernels=_forward,
)
group_norm_silu_backward = operator(
    "group_norm_silu_backward(Tensor grad, Tensor x, Tensor weight, Tensor bias, Tensor mean, Tensor rstd, bool silu,"
    " str table) -> (Tensor, Tensor, Tensor)",
    fake=lambda grad, x, weight, bias, *rest: _gradients(x, weight, bias),
    reference=lambda grad, x, weight, bias, mean, rstd, silu, table: _copied(
        gradient(grad, x, weight, bias, mean, rstd, silu=silu), _gradients(x, weight, bias)
    ),
    kernels=_backward,
)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, _, _, ctx.silu, ctx.table = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, weight, bias, mean, rstd)


def _go_back(ctx: Any, grad: Tensor, *statistics: Tensor) -> tuple[Tensor | None, ...]:
    return *group_norm_silu_backward(grad, *ctx.saved_tensors, ctx.silu, ctx.table), None, None, None, None


differentiable(group_norm_silu, keep=_keep, backward=_go_back)
differentiable_once(group_norm_silu_backward)
