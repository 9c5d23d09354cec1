"""How a linear layer of integers is computed: one class per implementation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from kolors_kernel.component import BuildContext, ComponentConfig, ExistingPath
from kolors_kernel.kinds import QuantizedLinearConfig

if TYPE_CHECKING:
    from kolors_kernel import protocols


class QuantizedLinearReference(QuantizedLinearConfig):
    """A linear layer of integers with its whole weight in float32: what the others are measured against."""

    type: Literal["reference"] = "reference"

    def build(self, ctx: BuildContext) -> protocols.QuantizedLinear:
        """Return the op that never refuses."""
        from kolors_ops.quantized_linear.reference import ReferenceQuantizedLinear

        return ReferenceQuantizedLinear()


class QuantizedLinearTorch(QuantizedLinearConfig):
    """A linear layer of integers by torch's own product, widened in blocks of rows."""

    type: Literal["torch"] = "torch"

    def build(self, ctx: BuildContext) -> protocols.QuantizedLinear:
        """Return the op that never refuses."""
        from kolors_ops.quantized_linear.native import TorchQuantizedLinear

        return TorchQuantizedLinear()


class QuantizedLinearTriton(QuantizedLinearConfig):
    """A linear layer of integers in one Triton kernel that reads them as they are; on CUDA and ROCm, no gradient."""

    type: Literal["triton"] = "triton"
    table: ExistingPath | None = None
    """A table of launches that `kolors run tune` wrote; null: the one that ships."""

    def build(self, ctx: BuildContext) -> protocols.QuantizedLinear:
        """Return the op; a call it cannot do raises ValueError."""
        from kolors_ops.quantized_linear.op import TritonQuantizedLinear

        return TritonQuantizedLinear(str(self.table or ""))


class QuantizedLinearAuto(QuantizedLinearConfig):
    """A linear layer of integers by the first of several that does not refuse, the reference last."""

    type: Literal["auto"] = "auto"
    prefer: list[QuantizedLinearConfig] = Field(default=[QuantizedLinearTriton(), QuantizedLinearTorch()])
    """Tried in this order at every call; the reference, which takes anything, is always tried last."""

    def build(self, ctx: BuildContext) -> protocols.QuantizedLinear:
        """Return the op that chooses."""
        from kolors_ops.auto import AutoOp

        choices = (*self.prefer, QuantizedLinearReference())
        return AutoOp("quantized_linear", [(c.type, c.build(ctx)) for c in choices])


COMPONENTS: tuple[type[ComponentConfig], ...] = (
    QuantizedLinearReference,
    QuantizedLinearTorch,
    QuantizedLinearTriton,
    QuantizedLinearAuto,
)
"""What there is of this op."""
