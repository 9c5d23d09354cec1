"""Which kernels of group norm and SiLU are launched, over which grids and with how much memory, for which tensors.

In the table, the width of the kernels that hold a whole group is the number of its elements, channels and pixels each
rounded up to a power of two; a group that is wider than every row is cut into tiles. Of the other kernels it is the
number of channels, and the case of those that see tiles is the memory format.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from kolors_ops.operators import Launch, Pick
from kolors_ops.table import Row

CONTIGUOUS, CHANNELS_LAST = "contiguous", "channels_last"
TILED = ("group_norm_sums", "group_norm_apply", "group_norm_sums_backward", "group_norm_apply_backward")
COMBINED = ("group_norm_combine", "group_norm_combine_backward")


@dataclass(frozen=True)
class Forward:
    """The tensors of a forward pass: x and out [B, C, ...], weight and bias [C], mean and rstd [B, groups]."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    out: Tensor
    mean: Tensor
    rstd: Tensor


@dataclass(frozen=True)
class Backward:
    """The tensors of a backward pass: grad, x and out, the gradient of x, [B, C, ...]; the others as forward."""

    grad: Tensor
    x: Tensor
    weight: Tensor
    bias: Tensor
    mean: Tensor
    rstd: Tensor
    out: Tensor


def scratch_forward(x: Tensor, groups: int, pick: Pick) -> list[Tensor]:
    """Return memory for means and squares of the tiles [B, parts, C], centres and scales of the channels [B, C].

    There is none of it where a group fits a program.
    """
    if _whole("group_norm_whole", x, groups, pick):
        return []
    parts, (batch, channels) = _parts("group_norm_sums", x, pick), x.shape[:2]
    sizes = ((batch, parts, channels),) * 2 + ((batch, channels),) * 2
    return [x.new_empty(size, dtype=torch.float32) for size in sizes]


def scratch_backward(x: Tensor, groups: int, pick: Pick) -> list[Tensor]:
    """Return memory for the sums that are gradients of bias and weight in each tile [2, B, parts, C], and for the
    factors of the channels [4, B, C]; where a group fits a program, there is one part and there are no factors.
    """
    batch, channels = x.shape[:2]
    if _whole("group_norm_whole_backward", x, groups, pick):
        return [x.new_empty((2, batch, 1, channels), dtype=torch.float32)]
    parts = _parts("group_norm_sums_backward", x, pick)
    return [x.new_empty(size, dtype=torch.float32) for size in ((2, batch, parts, channels), (4, batch, channels))]


def plan_forward(given: Forward, scratch: list[Tensor], eps: float, silu: bool, pick: Pick) -> list[Launch]:
    """Plan out, mean and rstd from the rest, with what `scratch_forward` gives."""
    from kolors_ops.group_norm_silu import kernel

    x, groups = given.x, given.mean.shape[1]
    picture = {"x": x, **strides("x", x)}
    made = {"out": given.out, **strides("out", given.out), "SILU": silu}
    statistics = {"mean": given.mean, "rstd": given.rstd}
    if row := _whole("group_norm_whole", x, groups, pick):
        parameters = {"weight": given.weight, "bias": given.bias, "eps": eps}
        arguments = {**picture, **made, **statistics, **parameters, **_group(x, groups)}
        return [Launch(kernel.group_norm_whole, (x.shape[0] * groups,), arguments, row)]
    means, squares, centres, scales = scratch
    sums = {"means": means, "squares": squares}
    channels = {"centres": centres, "scales": scales}
    summed = _over_tiles(kernel.group_norm_sums, {**picture, **sums}, x, pick)
    combined = {**sums, **channels, **statistics, "weight": given.weight, "eps": eps}
    applied = {**picture, **channels, **made, "bias": given.bias}
    return [
        summed,
        _over_groups(kernel.group_norm_combine, combined, x, groups, summed.row, pick),
        _over_tiles(kernel.group_norm_apply, applied, x, pick),
    ]


def plan_backward(given: Backward, scratch: list[Tensor], silu: bool, pick: Pick) -> list[Launch]:
    """Plan out, and the sums of the tiles, from the rest, with what `scratch_backward` gives."""
    from kolors_ops.group_norm_silu import kernel_backward as kernel

    x, groups = given.x, given.mean.shape[1]
    pictures = {"x": x, **strides("x", x), "grad": given.grad, **strides("grad", given.grad), "SILU": silu}
    made = {"out": given.out, **strides("out", given.out)}
    statistics = {"mean": given.mean, "rstd": given.rstd}
    sums = {"lifts": scratch[0][0], "gains": scratch[0][1]}
    parameters = {"weight": given.weight, "bias": given.bias}
    if row := _whole("group_norm_whole_backward", x, groups, pick):
        arguments = {**pictures, **made, **statistics, **sums, **parameters, **_group(x, groups)}
        return [Launch(kernel.group_norm_whole_backward, (x.shape[0] * groups,), arguments, row)]
    factors = {"factors": scratch[1], "plane": x.shape[0] * x.shape[1]}
    of_group = {"D": x.shape[1] // groups, "groups": groups}
    summed = {**pictures, **sums, **parameters, **statistics, **of_group}
    first = _over_tiles(kernel.group_norm_sums_backward, summed, x, pick)
    combined = {**sums, **statistics, **factors, "weight": given.weight}
    applied = {**pictures, **factors, **made, "bias": given.bias}
    return [
        first,
        _over_groups(kernel.group_norm_combine_backward, combined, x, groups, first.row, pick),
        _over_tiles(kernel.group_norm_apply_backward, applied, x, pick),
    ]


def strides_of(x: Tensor) -> tuple[int, int, int] | None:
    """Return the strides of x [B, C, ...] from picture to picture, channel to channel and pixel to pixel, or None.

    None is for pixels that are not evenly spaced, and where neither pixels nor channels lie side by side.
    """
    space = [(size, stride) for size, stride in zip(x.shape[2:], x.stride()[2:], strict=True) if size != 1]
    if any(outer != size * inner for (_, outer), (size, inner) in pairwise(space)):
        return None
    pixel = space[-1][1] if space else 1
    channel = x.stride(1) if x.shape[1] != 1 else 1
    return (x.stride(0), channel, pixel) if 1 in (channel, pixel) else None


def strides(name: str, x: Tensor) -> dict[str, int]:
    """Return the strides of x as arguments of a kernel."""
    found = strides_of(x)
    assert found is not None
    return dict(zip((f"{name}_batch", f"{name}_channel", f"{name}_pixel"), found, strict=True))


def format_of(x: Tensor) -> str:
    """Return which lie side by side: the channels of x [B, C, ...] ("channels_last"), or else its pixels."""
    found = strides_of(x)
    return CONTIGUOUS if found is None or found[2] == 1 else CHANNELS_LAST


def _whole(kernel: str, x: Tensor, groups: int, pick: Pick) -> Row | None:
    """Return the row for groups that fit a program, or None when those of x are too large for each there is."""
    try:
        blocks = _group(x, groups)
        return pick(kernel, x, blocks["CHANNELS"] * blocks["PIXELS"])
    except ValueError:
        return None


def _group(x: Tensor, groups: int) -> dict[str, int]:
    per_group, pixels = x.shape[1] // groups, _pixels(x)
    blocks = {"CHANNELS": _power_of_two(per_group), "PIXELS": _power_of_two(pixels)}
    return {"P": pixels, "groups": groups, "D": per_group, **blocks}


def _over_tiles(kernel: Any, arguments: dict[str, Any], x: Tensor, pick: Pick) -> Launch:
    name, channels, pixels = kernel.__name__, x.shape[1], _pixels(x)
    row = pick(name, x, channels, format_of(x))
    tiles = _parts(name, x, pick) * -(-channels // row.blocks["CHANNELS"])
    sizes = {"C": channels, "P": pixels, "CHANNELS_LAST": format_of(x) == CHANNELS_LAST}
    return Launch(kernel, (tiles, x.shape[0]), {**arguments, **sizes}, row)


def _over_groups(kernel: Any, arguments: dict[str, Any], x: Tensor, groups: int, tiles: Row, pick: Pick) -> Launch:
    channels = x.shape[1]
    sizes = {"C": channels, "P": _pixels(x), "D": channels // groups, "groups": groups}
    row = pick(kernel.__name__, x, channels)
    return Launch(kernel, (x.shape[0] * groups,), {**arguments, **sizes, "SPAN": _span(tiles)}, row)


def _parts(kernel: str, x: Tensor, pick: Pick) -> int:
    """Return into how many parts a kernel's tiles cut the pixels of x."""
    return -(-_pixels(x) // _span(pick(kernel, x, x.shape[1], format_of(x))))


def _span(row: Row) -> int:
    """Return of how many pixels a program takes care."""
    return row.blocks["PIXELS"] * row.blocks.get("STEPS", 1)


def _pixels(x: Tensor) -> int:
    return x[0, 0].numel()


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()
