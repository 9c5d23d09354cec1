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
        check_groups(x, groups)
        inner = torch.promote_types(x.dtype, torch.float32)
        split = x.to(inner).view(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])  # [B, G, C/G, ...]
        variance, mean = torch.var_mean(split, dim=tuple(range(2, split.ndim)), correction=0, keepdim=True)
        normal = ((split - mean) * torch.rsqrt(variance + eps)).flatten(1, 2)
        per_channel = (1, -1, *(1,) * (x.ndim - 2))
        scaled = normal * weight.to(inner).view(per_channel) + bias.to(inner).view(per_channel)
        return (F.silu(scaled) if silu else scaled).to(x.dtype)

    def refuses(
        self, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, *, silu: bool = True
    ) -> str | None:
        """Return None: any call can be done."""
        return None


def check_groups(x: Tensor, groups: int) -> None:
    """Raise ValueError unless the channels of x [B, C, ...] split evenly into groups."""
    if groups < 1 or x.shape[1] % groups:
        raise ValueError(f"{x.shape[1]} channels do not split into {groups} groups")
