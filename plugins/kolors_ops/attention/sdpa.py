"""Attention by torch's scaled_dot_product_attention, which picks its own fused kernel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kolors_ops.attention.reference import check_additive, differing_dtypes


class SDPAAttention:
    """torch's fused attention. Takes strided views of q, k and v as they are."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend: q [B, A, N, E], k and v [B, A, L, E], additive mask that broadcasts to [B, A, N, L] -> [B, A, N, E].

        Raises ValueError for a boolean mask and for a call it refuses.
        """
        if reason := self.refuses(q, k, v, mask):
            raise ValueError(f"attention 'sdpa' refuses: {reason}")
        check_additive(mask)
        if mask is not None:
            mask = mask.to(_mask_dtype(q)).view(*(1,) * (4 - mask.ndim), *mask.shape)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    def refuses(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> str | None:
        """Say why this call cannot run here: q, k and v of several dtypes; or return None."""
        return differing_dtypes(q, k, v)


def _mask_dtype(q: Tensor) -> torch.dtype:
    # The log of a key count loses a percent in bfloat16; yet only on the CPU is a float32 mask taken with such a q.
    return torch.promote_types(q.dtype, torch.float32) if q.device.type == "cpu" else q.dtype
