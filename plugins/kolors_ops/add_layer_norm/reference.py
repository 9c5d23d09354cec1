"""Adding and layer norm as their formulas say, on any device and in any floating dtype."""

from __future__ import annotations

import torch
from torch import Tensor


class ReferenceAddLayerNorm:
    """The definition: everything in float32, or in float64 for float64 inputs; the sum is rounded before its norm."""

    def __call__(
        self, x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return x + added, or x itself, and its layer norm: [..., D] each, with weight and bias [D]."""
        total = x if added is None else x + added
        return total, normalised(total, weight, bias, eps)[0]

    def refuses(self, x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> str | None:
        """Return None: any call can be done."""
        return None


def normalised(total: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the layer norm of total [..., D], rounded once, and each row's mean and 1 / sqrt(var + eps) [...]."""
    wide = total.to(torch.promote_types(total.dtype, torch.float32))
    variance, mean = torch.var_mean(wide, dim=-1, correction=0, keepdim=True)
    rstd = torch.rsqrt(variance + eps)
    out = (wide - mean) * rstd * weight.to(wide.dtype) + bias.to(wide.dtype)
    return out.to(total.dtype), mean.squeeze(-1), rstd.squeeze(-1)


def gradients(
    grad: Tensor, beside: Tensor | None, total: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the sum [..., D], weight and bias [D] from that of the norm, each rounded once.

    `beside` is the gradient that comes to the sum from elsewhere.
    """
    inner = mean.dtype
    upper, rows = grad.to(inner), (-1, grad.shape[-1])
    normal = (total.to(inner) - mean.unsqueeze(-1)) * rstd.unsqueeze(-1)
    scaled = upper * weight.to(inner)
    slope = (scaled * normal).mean(-1, keepdim=True)
    made = (scaled - scaled.mean(-1, keepdim=True) - normal * slope) * rstd.unsqueeze(-1)
    if beside is not None:
        made = made + beside.to(inner)
    to_weight, to_bias = ((upper * other).reshape(rows).sum(0) for other in (normal, 1))
    return made.to(total.dtype), to_weight.to(weight.dtype), to_bias.to(weight.dtype)
