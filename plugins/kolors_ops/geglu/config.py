"""How GEGLU is computed: one class per implementation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from kolors_kernel.component import BuildContext, ComponentConfig, ExistingPath
from kolors_kernel.kinds import GEGLUConfig

if TYPE_CHECKING:
    from kolors_kernel import protocols


class GEGLUReference(GEGLUConfig):
    """GEGLU from its formula, float32 inside: what the others are measured against."""

    type: Literal["reference"] = "reference"

    def build(self, ctx: BuildContext) -> protocols.GEGLU:
        """Return the op that never refuses."""
        from kolors_ops.geglu.reference import ReferenceGEGLU

        return ReferenceGEGLU()


class GEGLUTorch(GEGLUConfig):
    """torch's own exact gelu of the gate, times the value."""

    type: Literal["torch"] = "torch"

    def build(self, ctx: BuildContext) -> protocols.GEGLU:
        """Return the op."""
        from kolors_ops.geglu.native import TorchGEGLU

        return TorchGEGLU()


class GEGLUTriton(GEGLUConfig):
    """GEGLU in one Triton kernel, its gradient in another; on CUDA and ROCm."""

    type: Literal["triton"] = "triton"
    table: ExistingPath | None = None
    """A table of launches that `kolors run tune` wrote; null: the one that ships."""

    def build(self, ctx: BuildContext) -> protocols.GEGLU:
        """Return the op; a call it cannot do raises ValueError."""
        from kolors_ops.geglu.op import TritonGEGLU

        return TritonGEGLU(str(self.table or ""))


class GEGLUAuto(GEGLUConfig):
    """GEGLU by the first of several that does not refuse, the reference last."""

    type: Literal["auto"] = "auto"
    prefer: list[GEGLUConfig] = Field(default=[GEGLUTriton(), GEGLUTorch()])
    """Tried in this order at every call; the reference, which takes anything, is always tried last."""

    def build(self, ctx: BuildContext) -> protocols.GEGLU:
        """Return the op that chooses."""
        from kolors_ops.auto import AutoOp

        return AutoOp("geglu", [(c.type, c.build(ctx)) for c in (*self.prefer, GEGLUReference())])


COMPONENTS: tuple[type[ComponentConfig], ...] = (
    GEGLUReference,
    GEGLUTorch,
    GEGLUTriton,
    GEGLUAuto,
)
"""What there is of this op."""
