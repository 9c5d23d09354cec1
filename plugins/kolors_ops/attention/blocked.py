"""Attention on a CPU by large products in float32, in blocks whose scores stay in a core's cache."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kolors_ops.attention.reference import check_additive
from kolors_weights.precision import exact_onednn

_SCORES = 2**18
"""Scores at a time: 1 MiB, what a core of a server has for itself."""
_LANES = 16
"""Floats that a CPU takes at once: a softmax over 31 keys takes longer than one over 32."""


class BlockedAttention:
    """Products, softmax, products: float32 inside whatever the inputs are, since torch rounds a product of bfloat16s
    to bfloat16, and scores rounded so cost four times torch's own error.
    """

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend: q [B, A, N, E], k and v [B, A, L, E], additive mask that broadcasts to [B, A, N, L] -> [B, A, N, E].

        Raises ValueError for a boolean mask and for a call it refuses.
        """
        if reason := self.refuses(q, k, v, mask):
            raise ValueError(f"attention 'blocked' refuses: {reason}")
        check_additive(mask)
        with exact_onednn():
            found = _attend(q, k, v, mask)
        # Heads beside each other in memory, as the projection behind the attention reads them.
        out = q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3]).transpose(1, 2)
        return out.copy_(found.view(out.shape))

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


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """As above -> float32 [B * A, N, E]."""
    rows, padded = q.shape[2], -(-k.shape[2] // _LANES) * _LANES
    bias = _bias(mask, q.shape[:2], k.shape[2], padded)
    q, k, v = _flat(q, rows), _flat(k, padded), _flat(v, padded)
    out = torch.empty(len(q), rows, v.shape[2])
    many = min(rows, max(1, _SCORES // padded))  # rows of a block
    heads = min(len(q), max(1, _SCORES // (padded * many)))  # and heads, more than one only with all their rows
    memory = torch.empty(heads * many * padded)
    for head in range(0, len(q), heads):
        here = slice(head, head + heads)
        for row in range(0, rows, many):
            block = q[here, row : row + many]
            scores = memory[: len(block) * block.shape[1] * padded].view(len(block), -1, padded)
            torch.baddbmm(scores, block, k[here].mT, beta=0, alpha=1 / math.sqrt(q.shape[2]), out=scores)
            if bias is not None:
                scores += bias[here, row : row + many] if bias.shape[1] > 1 else bias[here]
            torch.softmax(scores, dim=-1, out=scores)
            torch.bmm(scores, v[here], out=out[here, row : row + many])
    return out


def _flat(x: Tensor, length: int) -> Tensor:
    """[B, A, L, E] -> contiguous float32 [B * A, length, E], zeros behind."""
    batch, heads, given, width = x.shape
    out = torch.empty(batch, heads, length, width)
    out[:, :, :given] = x
    out[:, :, given:] = 0
    return out.view(-1, length, width)


def _bias(mask: Tensor | None, heads: tuple[int, ...], keys: int, padded: int) -> Tensor | None:
    """Return what is added to the scores, float32 [B * A, 1 or N, padded], -inf behind the keys; None for nothing."""
    if mask is None and keys == padded:
        return None
    rows = 1 if mask is None or mask.ndim < 2 else mask.shape[-2]
    bias = torch.full((*heads, rows, padded), -math.inf)
    bias[..., :keys] = 0 if mask is None else mask
    return bias.flatten(0, 1)
