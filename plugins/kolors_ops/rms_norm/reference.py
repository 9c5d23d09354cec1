"""RMS norm as its formula says, on any device and in any floating dtype."""

from __future__ import annotations

import torch
from torch import Tensor


class ReferenceRMSNorm:
    """The definition: everything in float32, or in float64 for float64 inputs, rounded once at the end."""

    def __call__(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """[..., D] with weight [D] -> [..., D]."""
        return normalised(x, weight, eps)[0]

    def refuses(self, x: Tensor, weight: Tensor, eps: float) -> str | None:
        """Return None: any call can be done."""
        return None


def normalised(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the RMS norm of x [..., D], rounded once, and each row's 1 / sqrt(mean(x^2) + eps) [...]."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * rstd * weight.to(wide.dtype)).to(x.dtype), rstd.squeeze(-1)


def gradients(grad: Tensor, x: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of x [..., D] and weight [D] from that of the result, each rounded once."""
    inner = rstd.dtype
    upper, normal = grad.to(inner), x.to(inner) * rstd.unsqueeze(-1)
    scaled = upper * weight.to(inner)
    slope = (scaled * normal).mean(-1, keepdim=True)
    made = (scaled - normal * slope) * rstd.unsqueeze(-1)
    return made.to(x.dtype), (upper * normal).reshape(-1, x.shape[-1]).sum(0).to(weight.dtype)
