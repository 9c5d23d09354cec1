"""Attention for training on CPUs: in blocks that a cache holds, forward and backward.

Only q, k and v are kept for the backward pass, which computes each block's probabilities again. Beside torch's own
kernel it takes half the time where there are few rows or bfloat16, and as long where there are many in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kolors_ops.attention.blocks import blocks
from kolors_ops.attention.reference import check_additive, differing_dtypes


class RecomputedAttention:
    """Softmax in float32 (float64 for float64 inputs); the products with v and all gradients in the inputs' dtype."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend: q [B, A, N, E], k and v [B, A, L, E], additive mask that broadcasts to [B, A, N, L] -> [B, A, N, E].

        Raises ValueError for a boolean mask and for a call it refuses.
        """
        if reason := self.refuses(q, k, v, mask):
            raise ValueError(f"attention 'recomputed' refuses: {reason}")
        check_additive(mask)
        bias = None if mask is None else _per_head(mask, q.shape[:2])
        result: Tensor = _Recomputed.apply(*(x.flatten(0, 1) for x in (q, k, v)), bias)  # type: ignore[no-untyped-call]
        return result.view(q.shape)

    def refuses(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> str | None:
        """Say why this call cannot run here: not on a CPU, several dtypes, a mask to be trained, compiled; or None."""
        if q.device.type != "cpu":
            return f"it is made for CPUs, and q is on {q.device.type}"
        if reason := differing_dtypes(q, k, v):
            return reason
        if torch.compiler.is_compiling():
            return "a compiler has better blocks of its own"
        return "it gives a mask no gradient" if mask is not None and mask.requires_grad else None


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(q, k, v, bias)
        return _attend(q, k, v, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias = ctx.saved_tensors
        inner = torch.promote_types(q.dtype, torch.float32)
        # Blocks of rows add to the gradients of the same keys, so these are rounded once, at the end.
        for_q, for_k, for_v = torch.empty_like(q), torch.zeros_like(k, dtype=inner), torch.zeros_like(v, dtype=inner)
        with torch.autocast("cpu", enabled=False):
            for heads, rows in _blocks(len(q), q.shape[1], k.shape[1]):
                seen = _probabilities(q[heads, rows], k[heads], _of_rows(bias, heads, rows))
                for_v[heads] += torch.bmm(seen.to(v.dtype).mT, gradient[heads, rows])
                for_seen = torch.bmm(gradient[heads, rows], v[heads].mT).to(inner)
                for_scores = torch._softmax_backward_data(for_seen, seen, -1, inner).to(q.dtype)
                for_q[heads, rows] = torch.bmm(for_scores, k[heads])
                for_k[heads] += torch.bmm(for_scores.mT, q[heads, rows])
        scale = 1 / math.sqrt(q.shape[-1])
        return for_q.mul_(scale), for_k.mul_(scale).to(k.dtype), for_v.to(v.dtype), None


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    out = torch.empty_like(q)
    with torch.autocast("cpu", enabled=False):
        for heads, rows in _blocks(len(q), q.shape[1], k.shape[1]):
            seen = _probabilities(q[heads, rows], k[heads], _of_rows(bias, heads, rows))
            out[heads, rows] = torch.bmm(seen.to(v.dtype), v[heads])
    return out


def _per_head(mask: Tensor, heads: torch.Size) -> Tensor:
    """Return the mask [B * A, N or 1, L]: one that is the same for all rows stays one row."""
    mask = mask.view(*(1,) * (4 - mask.ndim), *mask.shape)
    return mask.expand(*heads, *mask.shape[2:]).flatten(0, 1)


def _of_rows(bias: Tensor | None, heads: slice, rows: slice) -> Tensor | None:
    if bias is None:
        return None
    return bias[heads, rows] if bias.shape[1] > 1 else bias[heads]


def _blocks(heads: int, rows: int, keys: int) -> Iterator[tuple[slice, slice]]:
    """Yield heads and rows of each block."""
    for _, some, parts in blocks(1, heads, rows, keys):
        for part in parts:
            yield some, part


def _probabilities(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(E) + bias) of q [H, n, E] and k [H, L, E], in float32 at least: [H, n, L]."""
    inner, scale = torch.promote_types(q.dtype, torch.float32), 1 / math.sqrt(q.shape[-1])
    q, k = q.to(inner), k.to(inner).mT
    scores = torch.bmm(q * scale, k) if bias is None else torch.baddbmm(bias.to(inner), q, k, alpha=scale)
    return scores.softmax(dim=-1)
