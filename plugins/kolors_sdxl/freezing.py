"""Rearranging the weights of a net that no longer trains, so that a CPU computes with them faster."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

from torch import nn

from kolors_sdxl.gating import GatedProjection, PackedGEGLU
from kolors_weights.packing import pack, reason_not_to_pack

UNFROZEN: Mapping[str, str] = MappingProxyType({"weights": "as they were read: freeze() packs them"})


def freeze(module: nn.Module, keep: Collection[nn.Module] = ()) -> Mapping[str, str]:
    """Pack every layer inside `module` but those to `keep`, and say what was done, by what it is about.

    The gated projections get their gelu inside the product, before its result is rounded.
    """
    gates = [gate for gate in module.modules() if isinstance(gate, GatedProjection)]
    fused = [gate for gate in gates if isinstance(gate.proj, nn.Linear) and reason_not_to_pack(gate.proj) is None]
    for gate in fused:
        gate.proj = PackedGEGLU(gate.proj)
    said = {"weights": pack(module, keep)}
    return said | ({"geglu": f"inside {len(fused)} packed products, whatever op was set"} if fused else {})
