"""How RMS norm is computed: one class per implementation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from kolors_kernel.component import BuildContext, ComponentConfig, ExistingPath
from kolors_kernel.kinds import RMSNormConfig

if TYPE_CHECKING:
    from kolors_kernel import protocols


class RMSNormReference(RMSNormConfig):
    """RMS norm in plain torch, float32 inside: what the others are measured against."""

    type: Literal["reference"] = "reference"

    def build(self, ctx: BuildContext) -> protocols.RMSNorm:
        """Return the op that never refuses."""
        from kolors_ops.rms_norm.reference import ReferenceRMSNorm

        return ReferenceRMSNorm()


class RMSNormTorch(RMSNormConfig):
    """torch's own rms_norm."""

    type: Literal["torch"] = "torch"

    def build(self, ctx: BuildContext) -> protocols.RMSNorm:
        """Return the op; a call it cannot do raises ValueError."""
        from kolors_ops.rms_norm.native import TorchRMSNorm

        return TorchRMSNorm()


class RMSNormTriton(RMSNormConfig):
    """RMS norm in one Triton kernel, its gradient in another; on CUDA and ROCm."""

    type: Literal["triton"] = "triton"
    table: ExistingPath | None = None
    """A table of launches that `kolors run tune` wrote; null: the one that ships."""

    def build(self, ctx: BuildContext) -> protocols.RMSNorm:
        """Return the op; a call it cannot do raises ValueError."""
        from kolors_ops.rms_norm.op import TritonRMSNorm

        return TritonRMSNorm(str(self.table or ""))


class RMSNormAuto(RMSNormConfig):
    """RMS norm by the first of several that does not refuse, the reference last."""

    type: Literal["auto"] = "auto"
    prefer: list[RMSNormConfig] = Field(default=[RMSNormTriton(), RMSNormTorch()])
    """Tried in this order at every call; the reference, which takes anything, is always tried last."""

    def build(self, ctx: BuildContext) -> protocols.RMSNorm:
        """Return the op that chooses."""
        from kolors_ops.auto import AutoOp

        return AutoOp("rms_norm", [(c.type, c.build(ctx)) for c in (*self.prefer, RMSNormReference())])


COMPONENTS: tuple[type[ComponentConfig], ...] = (
    RMSNormReference,
    RMSNormTorch,
    RMSNormTriton,
    RMSNormAuto,
)
"""What there is of this op."""
