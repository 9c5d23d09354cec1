"""RMS norm by torch's own."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


class TorchRMSNorm:
    """torch's rms_norm."""

    def __call__(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """[..., D] with weight [D] -> [..., D]. Raises ValueError for a call it refuses."""
        if reason := self.refuses(x, weight, eps):
            raise ValueError(f"rms_norm 'torch' refuses: {reason}")
        return F.rms_norm(x, weight.shape, weight, eps)

    def refuses(self, x: Tensor, weight: Tensor, eps: float) -> str | None:
        """Say why this call cannot run here: a weight of another dtype, which torch would promote; or return None."""
        return None if weight.dtype == x.dtype else f"the weight is {weight.dtype} and x {x.dtype}"
