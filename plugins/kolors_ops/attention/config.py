"""How attention is computed: one class per implementation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from kolors_kernel.component import BuildContext, ComponentConfig, ExistingPath
from kolors_kernel.kinds import AttentionConfig

if TYPE_CHECKING:
    from kolors_kernel import protocols


class AttentionReference(AttentionConfig):
    """Attention in plain torch with its softmax in float32: what the others are measured against."""

    type: Literal["reference"] = "reference"

    def build(self, ctx: BuildContext) -> protocols.Attention:
        """Return the op that never refuses."""
        from kolors_ops.attention.reference import ReferenceAttention

        return ReferenceAttention()


class AttentionSDPA(AttentionConfig):
    """Attention by torch's fused scaled_dot_product_attention."""

    type: Literal["sdpa"] = "sdpa"

    def build(self, ctx: BuildContext) -> protocols.Attention:
        """Return the op; a call it cannot do raises ValueError."""
        from kolors_ops.attention.sdpa import SDPAAttention

        return SDPAAttention()


class AttentionRecomputed(AttentionConfig):
    """Attention on CPUs in blocks that a cache holds; going back, each block's probabilities are computed again."""

    type: Literal["recomputed"] = "recomputed"

    def build(self, ctx: BuildContext) -> protocols.Attention:
        """Return the op; a call it cannot do raises ValueError."""
        from kolors_ops.attention.recomputed import RecomputedAttention

        return RecomputedAttention()


class AttentionBlocked(AttentionConfig):
    """Attention on CPUs without gradients, in float32 inside, by products large enough for oneDNN to be fast."""

    type: Literal["blocked"] = "blocked"

    def build(self, ctx: BuildContext) -> protocols.Attention:
        """Return the op; a call it cannot do raises ValueError."""
        from kolors_ops.attention.blocked import BlockedAttention

        return BlockedAttention()


class AttentionTriton(AttentionConfig):
    """Attention in one Triton kernel, its gradients in two; on CUDA and ROCm, with a mask of keys or none."""

    type: Literal["triton"] = "triton"
    table: ExistingPath | None = None
    """A table of launches that `kolors run tune` wrote; null: the one that ships."""

    def build(self, ctx: BuildContext) -> protocols.Attention:
        """Return the op; a call it cannot do raises ValueError."""
        from kolors_ops.attention.op import TritonAttention

        return TritonAttention(str(self.table or ""))


class AttentionAuto(AttentionConfig):
    """Attention by the first of several that does not refuse, the reference last."""

    type: Literal["auto"] = "auto"
    prefer: list[AttentionConfig] = Field(
        default=[AttentionTriton(), AttentionBlocked(), AttentionRecomputed(), AttentionSDPA()]
    )
    """Tried in this order at every call; the reference, which takes anything, is always tried last."""

    def build(self, ctx: BuildContext) -> protocols.Attention:
        """Return the op that chooses."""
        from kolors_ops.auto import AutoOp

        return AutoOp("attention", [(c.type, c.build(ctx)) for c in (*self.prefer, AttentionReference())])


COMPONENTS: tuple[type[ComponentConfig], ...] = (
    AttentionReference,
    AttentionSDPA,
    AttentionRecomputed,
    AttentionBlocked,
    AttentionTriton,
    AttentionAuto,
)
"""What there is of this op."""
