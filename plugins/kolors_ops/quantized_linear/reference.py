"""A linear layer of integers as its formula says, on any device and in any floating dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kolors_weights.quantizing import dequantize


class ReferenceQuantizedLinear:
    """The definition: the whole weight in float32, or in float64 for float64 inputs, rounded once at the end."""

    def __call__(self, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        """[..., I] -> [..., O] with weight [O, I] or [O, I / 2], scale [O] or [O, groups], bias [O] or None."""
        inner = torch.promote_types(x.dtype, torch.float32)
        wide = dequantize(weight, scale, x.shape[-1], inner)
        return F.linear(x.to(inner), wide, None if bias is None else bias.to(inner)).to(x.dtype)

    def refuses(self, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> str | None:
        """Return None: any call can be done."""
        return None
