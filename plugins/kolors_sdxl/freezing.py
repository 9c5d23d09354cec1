"""Rearranging the weights of a net that no longer trains, so that a CPU computes with them faster."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from kolors_sdxl.blocks import GatedProjection
from kolors_weights.packing import Packed, pack, reason_not_to_pack

UNFROZEN: Mapping[str, str] = MappingProxyType({"weights": "as they were read: freeze() packs them"})


def freeze(module: nn.Module, keep: Collection[nn.Module] = ()) -> Mapping[str, str]:
    """Pack every layer inside `module` but those to `keep`, and say what was done, by what it is about.

    The gated projections get their gelu inside the product, before its result is rounded.
    """
    gates = [gate for gate in module.modules() if isinstance(gate, GatedProjection)]
    fused = [gate for gate in gates if isinstance(gate.proj, nn.Linear) and reason_not_to_pack(gate.proj) is None]
    for gate in fused:
        gate.proj, gate.op = PackedGEGLU(gate.proj), _as_it_is
    said = {"weights": pack(module, keep)}
    return said | ({"geglu": f"inside {len(fused)} packed products, whatever op was set"} if fused else {})


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


def _as_it_is(x: Tensor) -> Tensor:
    return x
