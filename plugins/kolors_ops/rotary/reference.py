"""Rotary positions as their formula says, on any device and in any floating dtype."""

from __future__ import annotations

import torch
from torch import Tensor


class ReferenceRotary:
    """The definition: a product of complex numbers of float32, or float64 for float64 turns, rounded at the end."""

    def __call__(self, x: Tensor, turns: Tensor) -> Tensor:
        """Turn neighbouring pairs of each head of x [R, A, E] by turns [R, E / 2] -> [R, A, E]."""
        return turned(x, turns.real, turns.imag)

    def refuses(self, x: Tensor, turns: Tensor) -> str | None:
        """Return None: any call can be done."""
        return None


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn neighbouring pairs of each head of x [R, A, E] by angles of these cosines and sines [R, E / 2]."""
    # Written out, since a view as complex numbers asks for even strides and an even place in memory.
    even, odd = x.to(cos.dtype).reshape(*x.shape[:-1], -1, 2).unbind(-1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x.dtype)
