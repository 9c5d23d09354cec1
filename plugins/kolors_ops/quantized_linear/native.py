"""A linear layer of integers by torch's own product, for which the weight is widened in blocks of rows."""

from __future__ import annotations

from torch import Tensor

from kolors_weights.quantizing import quantized_linear


class TorchQuantizedLinear:
    """What a `QuantizedLinear` does by itself: at no time is more than a few rows of the weight wide."""

    def __call__(self, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        """[..., I] -> [..., O] with weight [O, I] or [O, I / 2], scale [O] or [O, groups], bias [O] or None."""
        return quantized_linear(x, weight, scale, bias)

    def refuses(self, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> str | None:
        """Return None: any call can be done."""
        return None
