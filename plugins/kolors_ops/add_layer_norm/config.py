"""How rows are added and normalised: one class per implementation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from kolors_kernel.component import BuildContext, ComponentConfig, ExistingPath
from kolors_kernel.kinds import AddLayerNormConfig

if TYPE_CHECKING:
    from kolors_kernel import protocols


class AddLayerNormReference(AddLayerNormConfig):
    """Adding and layer norm in plain torch, float32 inside: what the others are measured against."""

    type: Literal["reference"] = "reference"

    def build(self, ctx: BuildContext) -> protocols.AddLayerNorm:
        """Return the op that never refuses."""
        from kolors_ops.add_layer_norm.reference import ReferenceAddLayerNorm

        return ReferenceAddLayerNorm()


class AddLayerNormTorch(AddLayerNormConfig):
    """torch's sum, then its layer_norm."""

    type: Literal["torch"] = "torch"

    def build(self, ctx: BuildContext) -> protocols.AddLayerNorm:
        """Return the op; a call it cannot do raises ValueError."""
        from kolors_ops.add_layer_norm.native import TorchAddLayerNorm

        return TorchAddLayerNorm()


class AddLayerNormTriton(AddLayerNormConfig):
    """The sum and its layer norm in one Triton kernel, their gradient in another; on CUDA and ROCm."""

    type: Literal["triton"] = "triton"
    table: ExistingPath | None = None
    """A table of launches that `kolors run tune` wrote; null: the one that ships."""

    def build(self, ctx: BuildContext) -> protocols.AddLayerNorm:
        """Return the op; a call it cannot do raises ValueError."""
        from kolors_ops.add_layer_norm.op import TritonAddLayerNorm

        return TritonAddLayerNorm(str(self.table or ""))


class AddLayerNormAuto(AddLayerNormConfig):
    """Adding and layer norm by the first of several that does not refuse, the reference last."""

    type: Literal["auto"] = "auto"
    prefer: list[AddLayerNormConfig] = Field(default=[AddLayerNormTriton(), AddLayerNormTorch()])
    """Tried in this order at every call; the reference, which takes anything, is always tried last."""

    def build(self, ctx: BuildContext) -> protocols.AddLayerNorm:
        """Return the op that chooses."""
        from kolors_ops.auto import AutoOp

        return AutoOp("add_layer_norm", [(c.type, c.build(ctx)) for c in (*self.prefer, AddLayerNormReference())])


COMPONENTS: tuple[type[ComponentConfig], ...] = (
    AddLayerNormReference,
    AddLayerNormTorch,
    AddLayerNormTriton,
    AddLayerNormAuto,
)
"""What there is of this op."""
