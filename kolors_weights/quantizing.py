"""Linear layers whose weights are kept as integers of 8 or 4 bits; what goes through them stays floating point.

A weight is integer * scale, symmetric about zero. In a state dict it is

    weight        int8 [O, I], or of 4 bits int8 [O, I / 2]: the even column in the high half of a byte, the odd one in
                  the low half, both signed
    weight_scale  [O], or [O, groups] where each row is cut into groups of columns with a scale of their own

which is also the form of the quantised ChatGLM3 files that are passed around, with one scale per row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kolors_kernel.errors import WeightsError

Bits: TypeAlias = Literal[4, 8]
Op: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""x, weight, scale, bias -> the result, as `quantized_linear`."""
_AT_ONCE = 2**20
"""Weights that are widened at once: few enough to stay in the cache until they are multiplied."""


class QuantizedLinear(nn.Module):
    """A linear layer [..., I] -> [..., O] with an integer weight; there are gradients for nothing in it.

    `op` is what computes it; see `compute_by`. Scales keep their dtype when the layer is moved to another.
    """

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", scale)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.op: Op = quantized_linear

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        return self.op(x, self.weight, self.weight_scale, self.bias)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        scale = self.weight_scale
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.weight_scale = self.weight_scale.to(scale.dtype) if scale.is_meta else scale.to(self.weight.device)
        return self

    def extra_repr(self) -> str:
        """Return the shape of the stored weight and of its scales."""
        return f"weight={list(self.weight.shape)}, scale={list(self.weight_scale.shape)}"


def quantized_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., I] -> [..., O] by a weight and its scales in the form above, and a bias [O] or None.

    The weight is widened in blocks of rows, in the dtype of x.
    """
    rows, width = weight.shape
    if width < x.shape[-1]:
        x = torch.cat((x[..., 0::2], x[..., 1::2]), dim=-1)  # the order in which `widen` gives 4-bit columns
    step = max(1, _AT_ONCE // x.shape[-1])
    out = x.new_empty(*x.shape[:-1], rows)
    for start in range(0, rows, step):
        block = slice(start, start + step)
        out[..., block] = _rows_of_product(x, weight[block], scale[block])
    return out if bias is None else out.add_(bias)


def _rows_of_product(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    wide = widen(weight, x.shape[-1], x.dtype)
    if scale.ndim == 1 and x.dtype != torch.float16:  # where sums of integers soon overflow
        # Integers are exact in the other dtypes, and the scale of a row can wait for the sum.
        return (F.linear(x, wide) * scale.to(torch.promote_types(x.dtype, torch.float32))).to(x.dtype)
    scale = scale.view(len(scale), 1, -1, 1).to(x.dtype)  # the groups of each half of the columns
    grouped = wide.view(len(scale), x.shape[-1] // weight.shape[1], scale.shape[2], -1)
    return F.linear(x, (grouped * scale).flatten(1))


def widen(weight: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Return integers [O, I] or [O, I / 2] as [O, I] of a dtype: of 4 bits all even columns, then all odd ones."""
    if weight.shape[1] == width:
        return weight.to(dtype)
    wide = torch.empty(len(weight), width, dtype=dtype, device=weight.device)
    wide[:, : width // 2] = weight >> 4
    wide[:, width // 2 :] = (weight << 4) >> 4
    return wide


def dequantize(weight: Tensor, scale: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Return what a weight and its scales stand for, [O, I] of a dtype; `width` is I."""
    wide = widen(weight, width, dtype)
    if weight.shape[1] < width:
        wide = wide.view(len(wide), 2, -1).mT.flatten(1)  # even and odd columns side by side again
    scale = scale.to(dtype).view(len(scale), -1, 1)
    return (wide.view(*scale.shape[:2], -1) * scale).flatten(1)


def quantize(weight: Tensor, bits: Bits, *, group: int | None = None) -> tuple[Tensor, Tensor]:
    """Return the integers and scales of a weight [O, I]; `group` columns share a scale, or a whole row does.

    A scale, which is bfloat16 and may be negative, makes the weight that is furthest from zero the lowest integer:
    with 4 bits there is one integer more below zero than above, and it is worth an eighth of the error. Raises
    ValueError where groups do not come out even, or 4-bit columns do not pair.
    """
    rows, width = weight.shape
    if width % (group or 1) or (bits == 4 and (group or width) % 2):
        raise ValueError(f"{width} columns cannot be kept in {bits} bits in groups of {group or width}")
    lowest = -(2 ** (bits - 1))
    groups = weight.float().view(rows, -1, group or width)
    furthest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    scale = (furthest / lowest).to(torch.bfloat16)
    whole = (groups / scale.float()).nan_to_num_().round_().clamp_(lowest, -1 - lowest)  # 0 / 0 in a group of zeros
    whole = whole.to(torch.int8).view(rows, width)
    if bits == 4:
        whole = (whole[:, 0::2] << 4) | (whole[:, 1::2] & 15)
    return whole, scale.squeeze(-1) if group else scale.view(rows)


def quantize_linears(module: nn.Module, bits: Bits, *, group: int | None = None) -> None:
    """Replace every linear layer inside `module` by a quantised one, one at a time; see `quantize`.

    Where groups of `group` columns do not come out even, they are as much smaller as they must.
    """
    for name in _linears(module):
        linear: Any = module.get_submodule(name)
        width = linear.weight.shape[1]
        # In blocks of rows, whose float32 is small.
        rows = linear.weight.detach().split(max(1, _AT_ONCE // width))
        columns = group and math.gcd(width, group)
        whole, scale = zip(*(quantize(block, bits, group=columns) for block in rows), strict=True)
        module.set_submodule(name, QuantizedLinear(torch.cat(whole), torch.cat(scale), linear.bias))


def compute_by(module: nn.Module, op: Op) -> None:
    """Have every quantised layer inside `module` compute by `op`, which is called as `quantized_linear` is."""
    for child in module.modules():
        if isinstance(child, QuantizedLinear):
            child.op = op


def take_shapes(module: nn.Module, state: Mapping[str, Tensor]) -> Bits | None:
    """Replace linear layers of a module on the meta device by quantised ones where `state` has their scales.

    Returns the fewest bits among them, or None where there is none. Raises WeightsError where a scale does not go with
    its weight, or the weight with the layer.
    """
    found: list[Bits] = []
    for name in _linears(module):
        if f"{name}.weight_scale" in state and f"{name}.weight" in state:
            weight, scale = (state[f"{name}.{part}"] for part in ("weight", "weight_scale"))
            linear: Any = module.get_submodule(name)
            found.append(_bits_of(name, linear, weight, scale))
            module.set_submodule(name, QuantizedLinear(weight.to("meta"), scale.to("meta"), linear.bias))
    return min(found, default=None)


def _bits_of(name: str, linear: nn.Linear, weight: Tensor, scale: Tensor) -> Bits:
    rows, width = linear.out_features, linear.in_features
    groups = scale.shape[1] if scale.ndim == 2 else scale.ndim
    if weight.dtype == torch.int8 and scale.shape[:1] == (rows,) and scale.ndim <= 2 and not width % max(1, groups):
        if weight.shape == (rows, width):
            return 8
        if weight.shape == (rows, width // 2) and not width % 2:
            return 4
    raise WeightsError(
        f"{name} is quantised as {list(weight.shape)} of {weight.dtype} with scales {list(scale.shape)}, should be "
        f"[{rows}, {width}] (8 bits) or [{rows}, {width // 2}] (4 bits) of int8, with [{rows}] or [{rows}, groups]"
    )


def _linears(module: nn.Module) -> list[str]:
    return [name for name, child in module.named_modules() if isinstance(child, nn.Linear)]
