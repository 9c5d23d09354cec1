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
        with torch.autocast(q.device.type, enabled=False):  # it would bring the two products down to half precision
            scores = _scores(q, k, mask)
            return (scores.softmax(dim=-1) @ v.to(scores.dtype)).to(q.dtype)

    def refuses(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> str | None:
        """Return None: any call can be done."""
        return None


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return what attention gives, [B, A, N, E], and log2 of the sums of the scores' exponentials, [B, A, N].

    The latter is not rounded to the dtype of q.
    """
    scores = _scores(q, k, mask)
    return ReferenceAttention()(q, k, v, mask), scores.logsumexp(dim=-1) * math.log2(math.e)


def gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v from that of the result, and from both that `attend` gives; rounded once."""
    scores = _scores(q, k, mask)
    upper, asked, keys, values, made = (x.to(scores.dtype) for x in (grad, q, k, v, out))
    weights = torch.exp2(scores * math.log2(math.e) - lse.unsqueeze(-1))
    # A weight's share in its row's sum, which is 1, takes from it what the row's weights give together.
    slopes = weights * (upper @ values.mT - (upper * made).sum(dim=-1, keepdim=True)) / math.sqrt(q.shape[-1])
    return (slopes @ keys).to(q.dtype), (slopes.mT @ asked).to(k.dtype), (weights.mT @ upper).to(v.dtype)


def _scores(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    inner = torch.promote_types(q.dtype, torch.float32)
    scores = (q.to(inner) / math.sqrt(q.shape[-1])) @ k.to(inner).mT
    return scores if mask is None else scores + mask


def check_additive(mask: Tensor | None) -> None:
    """Raise ValueError for a boolean mask: some would add it as 0 and 1, others hide keys by it."""
    if mask is not None and not mask.is_floating_point():
        raise ValueError(f"an attention mask is added to the scores, so it is floating, not {mask.dtype}; hide by -inf")


def differing_dtypes(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Say that q, k and v, of any shape, are not of one dtype, or return None."""
    if q.dtype == k.dtype == v.dtype:
        return None
    return f"q, k and v must have one dtype, not {q.dtype}, {k.dtype} and {v.dtype}"
