"""How group norm, with SiLU or without, is computed: one class per implementation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from kolors_kernel.component import BuildContext, ComponentConfig, ExistingPath
from kolors_kernel.kinds import GroupNormSiLUConfig

if TYPE_CHECKING:
    from kolors_kernel import protocols


class GroupNormSiLUReference(GroupNormSiLUConfig):
    """Group norm and SiLU in plain torch, float32 inside: what the others are measured against."""

    type: Literal["reference"] = "reference"

    def build(self, ctx: BuildContext) -> protocols.GroupNormSiLU:
        """Return the op that never refuses."""
        from kolors_ops.group_norm_silu.reference import ReferenceGroupNormSiLU

        return ReferenceGroupNormSiLU()


class GroupNormSiLUTorch(GroupNormSiLUConfig):
    """torch's own group_norm, then its silu."""

    type: Literal["torch"] = "torch"

    def build(self, ctx: BuildContext) -> protocols.GroupNormSiLU:
        """Return the op; a call it cannot do raises ValueError."""
        from kolors_ops.group_norm_silu.native import TorchGroupNormSiLU

        return TorchGroupNormSiLU()


class GroupNormSiLUTriton(GroupNormSiLUConfig):
    """Group norm and SiLU in one Triton kernel where groups are small, in three elsewhere; on CUDA and ROCm."""

    type: Literal["triton"] = "triton"
    table: ExistingPath | None = None
    """A table of launches that `kolors run tune` wrote; null: the one that ships."""

    def build(self, ctx: BuildContext) -> protocols.GroupNormSiLU:
        """Return the op; a call it cannot do raises ValueError."""
        from kolors_ops.group_norm_silu.op import TritonGroupNormSiLU

        return TritonGroupNormSiLU(str(self.table or ""))


class GroupNormSiLUAuto(GroupNormSiLUConfig):
    """Group norm and SiLU by the first of several that does not refuse, the reference last."""

    type: Literal["auto"] = "auto"
    prefer: list[GroupNormSiLUConfig] = Field(default=[GroupNormSiLUTriton(), GroupNormSiLUTorch()])
    """Tried in this order at every call; the reference, which takes anything, is always tried last."""

    def build(self, ctx: BuildContext) -> protocols.GroupNormSiLU:
        """Return the op that chooses."""
        from kolors_ops.auto import AutoOp

        return AutoOp("group_norm_silu", [(c.type, c.build(ctx)) for c in (*self.prefer, GroupNormSiLUReference())])


COMPONENTS: tuple[type[ComponentConfig], ...] = (
    GroupNormSiLUReference,
    GroupNormSiLUTorch,
    GroupNormSiLUTriton,
    GroupNormSiLUAuto,
)
"""What there is of this op."""
