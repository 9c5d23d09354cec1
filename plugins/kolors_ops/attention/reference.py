"""Attention as its formula says, on any device and in any floating dtype."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class ReferenceAttention:
    """The definition: scores, softmax and sum in float32, or in float64 for float64 inputs."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend: q [B, A, N, E], k and v [B, A, L, E], additive mask that broadcasts to [B, A, N, L] -> [B, A, N, E].

        Raises ValueError for a boolean mask.
        """
        check_additive(mask)
        inner = torch.promote_types(q.dtype, torch.float32)
        with torch.autocast(q.device.type, enabled=False):  # it would bring the two products down to half precision
            scores = (q.to(inner) / math.sqrt(q.shape[-1])) @ k.to(inner).mT
            if mask is not None:
                scores = scores + mask
            return (scores.softmax(dim=-1) @ v.to(inner)).to(q.dtype)

    def refuses(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> str | None:
        """Return None: any call can be done."""
        return None


def check_additive(mask: Tensor | None) -> None:
    """Raise ValueError for a boolean mask: some would add it as 0 and 1, others hide keys by it."""
    if mask is not None and not mask.is_floating_point():
        raise ValueError(f"an attention mask is added to the scores, so it is floating, not {mask.dtype}; hide by -inf")


def differing_dtypes(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Say that q, k and v, of any shape, are not of one dtype, or return None."""
    if q.dtype == k.dtype == v.dtype:
        return None
    return f"q, k and v must have one dtype, not {q.dtype}, {k.dtype} and {v.dtype}"
