"""Group norm and SiLU as their formulas say, on any device and in any floating dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class ReferenceGroupNormSiLU:
    """The definition: everything in float32, or in float64 for float64 inputs, rounded once at the end."""

    def __call__(
        self, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, *, silu: bool = True
    ) -> Tensor:
        """silu(group_norm(x)), or the norm alone, of x [B, C, ...] with weight and bias [C].

        Raises ValueError unless `groups` divides C.
        """
        return norm_and_statistics(x, weight, bias, groups, eps, silu=silu)[0]

    def refuses(
        self, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, *, silu: bool = True
    ) -> str | None:
        """Return None: any call can be done."""
        return None


def norm_and_statistics(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, *, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return silu(group_norm(x)), or the norm alone, with each group's mean and 1 / sqrt(variance + eps) [B, groups].

    Raises ValueError unless `groups` divides C.
    """
    check_groups(x, groups)
    inner = torch.promote_types(x.dtype, torch.float32)
    split = x.to(inner).view(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])  # [B, G, C/G, ...]
    variance, mean = torch.var_mean(split, dim=tuple(range(2, split.ndim)), correction=0, keepdim=True)
    rstd = torch.rsqrt(variance + eps)
    scaled = _scaled(((split - mean) * rstd).flatten(1, 2), weight, bias)
    return (F.silu(scaled) if silu else scaled).to(x.dtype), mean.flatten(1), rstd.flatten(1)


def gradient(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, *, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias from that of the result [B, C, ...], each rounded once at the end.

    `mean` and `rstd` [B, groups] are those of `norm_and_statistics`.
    """
    inner = torch.promote_types(x.dtype, torch.float32)
    groups = mean.shape[1]
    split = x.to(inner).view(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    per_group = (*mean.shape, *(1,) * (split.ndim - 2))
    scale = rstd.to(inner).view(per_group)
    normal = (split - mean.to(inner).view(per_group)) * scale  # [B, G, C/G, ...]
    upper = grad.to(inner)
    if silu:  # d(z sigmoid(z)) with z after weight and bias
        scaled = _scaled(normal.flatten(1, 2), weight, bias)
        share = torch.sigmoid(scaled)
        upper = upper * (share * (1 + scaled * (1 - share)))
    all_but_channels = (0, *range(2, x.ndim))
    lift = upper.sum(all_but_channels)
    gain = (upper * normal.flatten(1, 2)).sum(all_but_channels)
    upper = _scaled(upper, weight, None).view(split.shape)
    within = tuple(range(2, split.ndim))
    level, slope = upper.mean(within, keepdim=True), (upper * normal).mean(within, keepdim=True)
    below = (scale * (upper - level - normal * slope)).flatten(1, 2)
    return below.to(x.dtype), gain.to(weight.dtype), lift.to(bias.dtype)


def check_groups(x: Tensor, groups: int) -> None:
    """Raise ValueError unless the channels of x [B, C, ...] split evenly into groups."""
    if groups < 1 or x.shape[1] % groups:
        raise ValueError(f"{x.shape[1]} channels do not split into {groups} groups")


def _scaled(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x [B, C, ...] times weight [C], plus bias [C] if there is one, in the dtype of x."""
    per_channel = (1, -1, *(1,) * (x.ndim - 2))
    scaled = x * weight.to(x.dtype).view(per_channel)
    return scaled if bias is None else scaled + bias.to(x.dtype).view(per_channel)
