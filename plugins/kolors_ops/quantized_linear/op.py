"""A linear layer of integers as an operator of torch, with a kernel in Triton."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from kolors_ops.operators import Launch, Pick, Sample, are_rows, lacks, launch, opened, operator, pick_from, unsupported
from kolors_ops.quantized_linear.reference import ReferenceQuantizedLinear
from kolors_ops.table import family_of

KERNELS = ("quantized_linear_forward",)
LAYERS = (
    # columns, rows, bits, columns to a scale
    (4096, 4608, 8, 0),
    (4096, 4608, 4, 64),
    (13696, 4096, 4, 64),
    (4096, 27392, 4, 0),
)
"""What ChatGLM3-6B has: made here of 8 bits and of 4, and in the files that are passed around of 4 with one scale."""


class TritonQuantizedLinear:
    """The product in one kernel that widens the integers on their way; `table` is the file with the launches ("": that
    which ships).

    In the table, a width is the number of rows of x, and the case is how many bits an integer has.
    """

    def __init__(self, table: str = "") -> None:
        self.table = opened(table)

    def __call__(self, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        """[..., I] -> [..., O] with weight [O, I] or [O, I / 2], scale [O] or [O, groups], bias [O] or None.

        Raises ValueError for a call it refuses.
        """
        if reason := self.refuses(x, weight, scale, bias):
            raise ValueError(f"quantized_linear 'triton' refuses: {reason}")
        made: Tensor = quantized_linear(x, weight, scale, bias, self.table)
        return made

    def refuses(self, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> str | None:
        """Say why this call cannot run here (device, gradient, strides, groups of columns), or return None."""
        if reason := unsupported(x):
            return reason
        if x.requires_grad and torch.is_grad_enabled():
            return "x wants a gradient, for which there is no kernel"
        if not are_rows(x):
            return f"its rows, of strides {x.stride()}, are not evenly spaced with their elements side by side"
        width, rows = x.shape[-1], x.numel() // x.shape[-1]
        if reason := _misfit(width, weight, scale, bias):
            return reason
        if not (weight.is_contiguous() and scale.is_contiguous() and (bias is None or bias.is_contiguous())):
            return "weight, scale and bias are not laid out row by row"
        case, group = _case(width, weight), _group(width, scale)
        if reason := lacks(self.table, KERNELS, x, rows, case):
            return reason
        block = pick_from(self.table, family_of(x.device))(*KERNELS, x, rows, case).blocks["BLOCK_I"]
        if width % block or group % block:
            return f"{width} columns, {group or width} to a scale, do not split into blocks of {block}"
        return None


def plan(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, out: Tensor, pick: Pick) -> list[Launch]:
    """Plan out [..., O] from x [..., I], weight [O, I] or [O, I / 2], scale [O] or [O, groups], bias [O] or None."""
    from kolors_ops.quantized_linear.kernel import quantized_linear_forward

    rows, made = x.view(-1, x.shape[-1]), out.view(-1, out.shape[-1])
    size, width, height = *rows.shape, len(weight)
    case = _case(width, weight)
    row = pick(*KERNELS, x, size, case)
    arguments = {
        **{"x": rows, "weight": weight, "scale": scale, "bias": bias, "out": made},
        **{"R": size, "WIDTH": width, "HEIGHT": height, "x_stride": rows.stride(0)},
        **{"BITS": int(case[0]), "GROUP": _group(width, scale)},
    }
    # Programs with the same rows of the weight come one after the other, so that these are read once.
    grid = (-(-size // row.blocks["BLOCK_R"]), -(-height // row.blocks["BLOCK_O"]))
    return [Launch(quantized_linear_forward, grid, arguments, row)]


def samples(dtype: torch.dtype) -> Iterator[Sample]:
    """Yield layers of ChatGLM3-6B for a few and for many tokens: attention's, with its bias, the deep and the wide."""
    for rows in (24, 96, 1024):
        for width, height, bits, group in LAYERS:
            x, out = (torch.empty(rows, size, dtype=dtype, device="meta") for size in (width, height))
            weight = torch.empty(height, width * bits // 8, dtype=torch.int8, device="meta")
            scales = (height, width // group) if group else (height,)
            scale = torch.empty(scales, dtype=torch.bfloat16, device="meta")
            bias = torch.empty(height, dtype=dtype, device="meta") if height == 4608 else None
            name = f"{rows}x{width} to {height}, {bits} bits" + (f" in groups of {group}" if group else "")
            yield Sample(name, partial(plan, x, weight, scale, bias, out))


def _misfit(width: int, weight: Tensor, scale: Tensor, bias: Tensor | None) -> str | None:
    """Say why tensors of such shapes are no layer of that many columns, or return None."""
    height, stored = weight.shape
    groups = scale.shape[1] if scale.ndim == 2 else 1
    if weight.dtype != torch.int8 or width not in (stored, 2 * stored):
        return f"x has rows of {width}, for which a weight {list(weight.shape)} of {weight.dtype} is none"
    if scale.shape[0] != height or scale.ndim > 2 or not groups or width % groups:
        return f"scales {list(scale.shape)} do not go with a weight of {height} rows and {width} columns"
    if bias is not None and bias.shape != (height,):
        return f"a bias {list(bias.shape)} does not go with a weight of {height} rows"
    return None


def _case(width: int, weight: Tensor) -> str:
    return "8 bits" if weight.shape[1] == width else "4 bits"


def _group(width: int, scale: Tensor) -> int:
    """Return how many columns share a scale, 0 for a whole row."""
    return width // scale.shape[1] if scale.ndim == 2 else 0


def _empty(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _forward(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, table: str) -> Tensor:
    out = _empty(x, weight)
    launch(lambda pick: plan(x, weight, scale, bias, out, pick), x, table)
    return out


quantized_linear = operator(
    "quantized_linear(Tensor x, Tensor weight, Tensor scale, Tensor? bias, str table) -> Tensor",
    fake=lambda x, weight, scale, bias, table: _empty(x, weight),
    reference=lambda x, weight, scale, bias, table: ReferenceQuantizedLinear()(x, weight, scale, bias),
    kernels=_forward,
)
