"""GEGLU as its formula says, on any device and in any floating dtype."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class ReferenceGEGLU:
    """The definition: everything in float32, or in float64 for float64 inputs, rounded once at the end."""

    def __call__(self, x: Tensor) -> Tensor:
        """[..., 2F] -> [..., F]. Raises ValueError when the last dimension is odd."""
        value, gate = (half.to(torch.promote_types(x.dtype, torch.float32)) for half in halves(x))
        return (value * (0.5 * gate * (1 + torch.erf(gate / math.sqrt(2))))).to(x.dtype)

    def refuses(self, x: Tensor) -> str | None:
        """Return None: any call can be done."""
        return None


def gradient(grad: Tensor, x: Tensor) -> Tensor:
    """Return the gradient of x [..., 2F] from that of the result [..., F], rounded once at the end."""
    inner = torch.promote_types(x.dtype, torch.float32)
    upper, value, gate = (t.to(inner) for t in (grad, *halves(x)))
    below = 0.5 * (1 + torch.erf(gate / math.sqrt(2)))  # the normal distribution, and its density
    density = torch.exp(-0.5 * gate.square()) / math.sqrt(2 * math.pi)
    return torch.cat((upper * gate * below, upper * value * (below + gate * density)), dim=-1).to(x.dtype)


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return value and gate, views [..., F] of x [..., 2F]. Raises ValueError when the last dimension is odd."""
    if x.shape[-1] % 2:
        raise ValueError(f"value and gate are the halves of the last dimension, which is odd: {x.shape[-1]}")
    value, gate = x.chunk(2, dim=-1)
    return value, gate
