"""The ops a recipe can name: one class per kind and implementation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from kolors_kernel.component import BuildContext, ComponentConfig
from kolors_kernel.kinds import AttentionConfig, GEGLUConfig, GroupNormSiLUConfig

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


class AttentionAuto(AttentionConfig):
    """Attention by the first of several that does not refuse, the reference last."""

    type: Literal["auto"] = "auto"
    prefer: list[AttentionConfig] = Field(default=[AttentionBlocked(), AttentionRecomputed(), AttentionSDPA()])
    """Tried in this order at every call; the reference, which takes anything, is always tried last."""

    def build(self, ctx: BuildContext) -> protocols.Attention:
        """Return the op that chooses."""
        from kolors_ops.auto import AutoOp

        return AutoOp("attention", [(c.type, c.build(ctx)) for c in (*self.prefer, AttentionReference())])


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


class GroupNormSiLUAuto(GroupNormSiLUConfig):
    """Group norm and SiLU by the first of several that does not refuse, the reference last."""

    type: Literal["auto"] = "auto"
    prefer: list[GroupNormSiLUConfig] = Field(default=[GroupNormSiLUTorch()])
    """Tried in this order at every call; the reference, which takes anything, is always tried last."""

    def build(self, ctx: BuildContext) -> protocols.GroupNormSiLU:
        """Return the op that chooses."""
        from kolors_ops.auto import AutoOp

        return AutoOp("group_norm_silu", [(c.type, c.build(ctx)) for c in (*self.prefer, GroupNormSiLUReference())])


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


class GEGLUAuto(GEGLUConfig):
    """GEGLU by the first of several that does not refuse, the reference last."""

    type: Literal["auto"] = "auto"
    prefer: list[GEGLUConfig] = Field(default=[GEGLUTorch()])
    """Tried in this order at every call; the reference, which takes anything, is always tried last."""

    def build(self, ctx: BuildContext) -> protocols.GEGLU:
        """Return the op that chooses."""
        from kolors_ops.auto import AutoOp

        return AutoOp("geglu", [(c.type, c.build(ctx)) for c in (*self.prefer, GEGLUReference())])


COMPONENTS: tuple[type[ComponentConfig], ...] = (
    AttentionReference,
    AttentionSDPA,
    AttentionRecomputed,
    AttentionBlocked,
    AttentionAuto,
    GroupNormSiLUReference,
    GroupNormSiLUTorch,
    GroupNormSiLUAuto,
    GEGLUReference,
    GEGLUTorch,
    GEGLUAuto,
)
"""What this plugin provides."""
