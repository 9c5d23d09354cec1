"""How heads are turned by their positions: one class per implementation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from kolors_kernel.component import BuildContext, ComponentConfig, ExistingPath
from kolors_kernel.kinds import RotaryConfig

if TYPE_CHECKING:
    from kolors_kernel import protocols


class RotaryReference(RotaryConfig):
    """Rotary positions as a product of complex numbers: what the others are measured against."""

    type: Literal["reference"] = "reference"

    def build(self, ctx: BuildContext) -> protocols.Rotary:
        """Return the op that never refuses."""
        from kolors_ops.rotary.reference import ReferenceRotary

        return ReferenceRotary()


class RotaryTriton(RotaryConfig):
    """Rotary positions in one Triton kernel, which turns gradients back too; on CUDA and ROCm."""

    type: Literal["triton"] = "triton"
    table: ExistingPath | None = None
    """A table of launches that `kolors run tune` wrote; null: the one that ships."""

    def build(self, ctx: BuildContext) -> protocols.Rotary:
        """Return the op; a call it cannot do raises ValueError."""
        from kolors_ops.rotary.op import TritonRotary

        return TritonRotary(str(self.table or ""))


class RotaryAuto(RotaryConfig):
    """Rotary positions by the first of several that does not refuse, the reference last."""

    type: Literal["auto"] = "auto"
    prefer: list[RotaryConfig] = Field(default=[RotaryTriton()])
    """Tried in this order at every call; the reference, which takes anything, is always tried last."""

    def build(self, ctx: BuildContext) -> protocols.Rotary:
        """Return the op that chooses."""
        from kolors_ops.auto import AutoOp

        return AutoOp("rotary", [(c.type, c.build(ctx)) for c in (*self.prefer, RotaryReference())])


COMPONENTS: tuple[type[ComponentConfig], ...] = (
    RotaryReference,
    RotaryTriton,
    RotaryAuto,
)
"""What there is of this op."""
