"""RMS norm as its formula says, on any device and in any floating dtype."""

from __future__ import annotations

import torch
from torch import Tensor


class ReferenceRMSNorm:
    """The definition: everything in float32, or in float64 for float64 inputs, rounded once at the end."""

    def __call__(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """[..., D] with weight [D] -> [..., D]."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.to(wide.dtype)).to(x.dtype)

    def refuses(self, x: Tensor, weight: Tensor, eps: float) -> str | None:
        """Return None: any call can be done."""
        return None
