"""The gated projection of a feed-forward layer, and its packed form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kolors_weights.packing import Packed

if TYPE_CHECKING:
    from kolors_kernel.protocols import GEGLU


class GatedProjection(nn.Module):
    """A projection to twice the inner width, one half of which gates the other: [B, N, C] -> [B, N, I]."""

    def __init__(self, channels: int, inner: int, *, op: GEGLU) -> None:
        super().__init__()
        self.op = op
        self.proj: nn.Module = nn.Linear(channels, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        """Project, then gate; a packed projection has gated already."""
        rows: Tensor = self.proj(x)
        return rows if isinstance(self.proj, PackedGEGLU) else self.op(rows)


class PackedGEGLU(Packed):
    """A linear layer with a GEGLU behind it: [..., I] -> [..., O / 2]."""

    def lay_out(self, plain: nn.Linear) -> None:
        """Lay out the weight of a layer that can be packed."""
        self.sizes = plain.in_features, plain.out_features
        self.value, self.gate = map(_reordered, plain.weight.detach().chunk(2))
        self.biases = plain.bias.detach().chunk(2)

    def plain(self) -> nn.Linear:
        """Return the plain layer that this one stands for, with a weight of its own."""
        layer = nn.Linear(*self.sizes, device="meta")
        layer.weight = nn.Parameter(torch.cat([self.value.to_dense(), self.gate.to_dense()]))
        layer.bias = nn.Parameter(torch.cat(self.biases))
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Raise RunError where a gradient is wanted, or where a setting of torch's would round float32."""
        self.check(x, self.value, "matmul")
        product = torch.ops.mkldnn._linear_pointwise
        gate = product(x, self.gate, self.biases[1], "gelu", [], "none")  # "none": exact, by erf
        out: Tensor = product(x, self.value, self.biases[0], "none", [], "").mul_(gate)
        return out


def _reordered(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return packed
