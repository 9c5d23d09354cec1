"""Adding and layer norm by torch's own two kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class TorchAddLayerNorm:
    """torch's sum, where no gradient is kept in the memory of x, then its layer_norm."""

    def __call__(
        self, x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return x + added, or x itself, and its layer norm: [..., D] each, with weight and bias [D].

        Raises ValueError for a call it refuses.
        """
        if reason := self.refuses(x, added, weight, bias, eps):
            raise ValueError(f"add_layer_norm 'torch' refuses: {reason}")
        total = x if added is None else x + added if torch.is_grad_enabled() else x.add_(added)
        return total, F.layer_norm(total, weight.shape, weight, bias, eps)

    def refuses(self, x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> str | None:
        """Say why this call cannot run here: parameters of a dtype torch does not mix with x's; or return None."""
        if weight.dtype == bias.dtype == x.dtype:
            return None
        return f"weight and bias are {weight.dtype} and {bias.dtype}, which torch does not mix with x of {x.dtype}"
