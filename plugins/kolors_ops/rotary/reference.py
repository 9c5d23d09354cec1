"""Rotary positions as their formula says, on any device and in any floating dtype."""

from __future__ import annotations

import torch
from torch import Tensor


class ReferenceRotary:
    """The definition: a product of complex numbers of float32, or float64 for float64 turns, rounded at the end."""

    def __call__(self, x: Tensor, turns: Tensor) -> Tensor:
        """Turn neighbouring pairs of each head of x [R, A, E] by turns [R, E / 2] -> [R, A, E]."""
        pairs = torch.view_as_complex(x.to(turns.real.dtype).reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * turns.unsqueeze(1)).flatten(-2).to(x.dtype)

    def refuses(self, x: Tensor, turns: Tensor) -> str | None:
        """Return None: any call can be done."""
        return None
