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
        inner = torch.promote_types(x.dtype, torch.float32)
        variance, mean = torch.var_mean(total.to(inner), dim=-1, correction=0, keepdim=True)
        normal = (total.to(inner) - mean) * torch.rsqrt(variance + eps)
        return total, (normal * weight.to(inner) + bias.to(inner)).to(x.dtype)

    def refuses(self, x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> str | None:
        """Return None: any call can be done."""
        return None
