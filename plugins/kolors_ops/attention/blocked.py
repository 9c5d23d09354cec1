"""Attention on a CPU by large products in float32, in blocks whose scores stay in a core's cache."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kolors_ops.attention.blocks import blocks
from kolors_ops.attention.reference import check_additive
from kolors_ops.attention.sdpa import SDPAAttention
from kolors_weights.precision import exact_onednn, without_onednn

_FEW = 1024
"""Rows of all heads and pictures below which torch's own kernel is faster, being a single call."""
_LANES = 16
"""Floats that a CPU takes at once: a softmax over 31 keys takes longer than one over 32."""


class BlockedAttention:
    """Products, softmax, products: float32 inside whatever the inputs are, since torch rounds a product of bfloat16s
    to bfloat16, and scores rounded so cost four times torch's own error. A few rows go to torch's own kernel.
    """

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend: q [B, A, N, E], k and v [B, A, L, E], additive mask that broadcasts to [B, A, N, L] -> [B, A, N, E].

        Raises ValueError for a boolean mask and for a call it refuses.
        """
        if reason := self.refuses(q, k, v, mask):
            raise ValueError(f"attention 'blocked' refuses: {reason}")
        check_additive(mask)
        if q.shape[:3].numel() < _FEW:
            with without_onednn():
                return SDPAAttention()(q, k, v, mask)
        # Heads beside each other in memory, as the projection behind the attention reads them.
        out = q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3]).transpose(1, 2)
        with exact_onednn():
            _attend(q, k, v, mask, out)
        return out

    def refuses(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> str | None:
        """Say why this call cannot run here, or return None: only float32 and bfloat16 on a CPU, without gradients."""
        if q.device.type != "cpu":
            return f"it is for CPUs, not for '{q.device.type}'"
        if not q.dtype == k.dtype == v.dtype or q.dtype not in (torch.float32, torch.bfloat16):
            return f"q, k and v must be all float32 or all bfloat16, not {q.dtype}, {k.dtype} and {v.dtype}"
        if torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v, mask) if t is not None):
            return "it gives no gradients"
        if torch.is_autocast_enabled("cpu"):
            return "autocast would round its products"
        if torch.compiler.is_compiling() or torch.jit._trace.is_tracing():  # type: ignore[no-untyped-call]
            return "a compiler has better blocks of its own"
        return None


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, out: Tensor) -> None:
    """Fill `out`, block by block: what a block reads is widened in the cache, never all of it in memory."""
    batch, heads, rows, width = q.shape
    padded = -(-k.shape[2] // _LANES) * _LANES
    bias = None if mask is None and k.shape[2] == padded else _bias(mask, q, k.shape[2], padded)
    for pictures, some, parts in blocks(batch, heads, rows, padded):
        keys, values = (_wide(x[pictures, some], padded) for x in (k, v))
        keys = keys.mul_(1 / math.sqrt(width)).mT
        for part in parts:
            block = q[pictures, some, part]
            scores = torch.bmm(_wide(block, block.shape[2]), keys)
            if bias is not None:
                where = bias[pictures, some, part] if bias.shape[2] > 1 else bias[pictures, some]
                scores += where.flatten(0, 1)
            torch.softmax(scores, dim=-1, out=scores)
            block = out[pictures, some, part]
            block.copy_(torch.bmm(scores, values).view(block.shape))


def _wide(x: Tensor, length: int) -> Tensor:
    """[b, a, n, E] -> contiguous float32 [b * a, length, E], zeros behind."""
    batch, heads, given, width = x.shape
    if given == length:
        return torch.empty(batch, heads, length, width).copy_(x).flatten(0, 1)
    out = torch.zeros(batch, heads, length, width)
    out[:, :, :given] = x
    return out.flatten(0, 1)


def _bias(mask: Tensor | None, q: Tensor, keys: int, padded: int) -> Tensor:
    """Return what is added to the scores, float32 [B, A, 1 or N, padded]: the mask, and -inf behind the keys."""
    rows = 1 if mask is None or mask.ndim < 2 else mask.shape[-2]
    bias = torch.full((*q.shape[:2], rows, padded), -math.inf)
    bias[..., :keys] = 0 if mask is None else mask
    return bias
