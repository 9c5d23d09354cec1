"""GEGLU by torch's own gelu."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kolors_ops.geglu.reference import halves


class TorchGEGLU:
    """torch's exact gelu, rounded to the dtype of x, times the value."""

    def __call__(self, x: Tensor) -> Tensor:
        """[..., 2F] -> [..., F]. Raises ValueError when the last dimension is odd."""
        value, gate = halves(x)
        return value * F.gelu(gate)

    def refuses(self, x: Tensor) -> str | None:
        """Return None: any call can be done."""
        return None
