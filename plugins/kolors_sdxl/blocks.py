"""The layers the U-Net and the VAE are made of; attributes are named as in the released files.

The sums that a released layout would divide by 1.0 are not divided: 159 fewer operations in a forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from kolors_sdxl.gating import GatedProjection

if TYPE_CHECKING:
    from kolors_kernel.protocols import GEGLU, AddLayerNorm, Attention, GroupNormSiLU


M = TypeVar("M", bound=nn.Module)


def run_plainly(layer: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
    """Call a layer, keeping for the backward pass whatever it keeps."""
    return layer(*inputs)


def run_checkpointed(layer: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
    """Call a layer, keeping only its inputs: the backward pass computes the rest again."""
    if not torch.is_grad_enabled():
        return layer(*inputs)
    # No layer draws random numbers, so there is no generator state to restore.
    result: Tensor = checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False)
    return result


@dataclass(frozen=True)
class Ops:
    """The operations that have several implementations, and how a layer is run."""

    attention: Attention
    group_norm_silu: GroupNormSiLU
    geglu: GEGLU
    add_layer_norm: AddLayerNorm
    run: Callable[..., Tensor] = run_plainly


def place(module: M, *, device: str, dtype: str) -> M:
    """Return the module moved to a device, its weights in the dtype of this name."""
    return module.to(device=device, dtype=getattr(torch, dtype))


class ResnetBlock(nn.Module):
    """Two convolutions beside a shortcut: [B, C_in, h, w] -> [B, C_out, h, w]."""

    def __init__(
        self, channels: int, out_channels: int, *, embedding: int | None, groups: int, eps: float, op: GroupNormSiLU
    ) -> None:
        super().__init__()
        self.op = op
        self.norm1 = nn.GroupNorm(groups, channels, eps)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        if embedding is not None:
            self.time_emb_proj = nn.Linear(embedding, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else None

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """`embedding` [B, E] is what the time embedding is after its SiLU; None in a VAE."""
        h = self.conv1(norm_silu(self.op, self.norm1, x))
        if embedding is not None:
            h += self.time_emb_proj(embedding)[:, :, None, None]
        out: Tensor = self.conv2(norm_silu(self.op, self.norm2, h))
        out += x if self.conv_shortcut is None else self.conv_shortcut(x)
        return out


def norm_silu(op: GroupNormSiLU, norm: nn.GroupNorm, x: Tensor, *, silu: bool = True) -> Tensor:
    """Return silu(norm(x)), or norm(x) alone, of x [B, C, h, w] by the op, with the norm's own parameters."""
    return op(x, norm.weight, norm.bias, norm.num_groups, norm.eps, silu=silu)


def add_norm(op: AddLayerNorm, norm: nn.LayerNorm, made: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return made + x, perhaps in the memory of `made`, which nothing else reads, and its norm: [B, N, C] each."""
    return op(made, x, norm.weight, norm.bias, norm.eps)


Keys: TypeAlias = tuple[Tensor, Tensor]
"""What rows attend to: keys and values, [B, A, L, E] each."""


def plus(made: Tensor, x: Tensor) -> Tensor:
    """Return made + x, in the memory of `made`, which nothing else reads, where no gradient goes back through it."""
    # Going back through a change of a view, as the result of a linear layer is one, torch copies the gradient.
    return made + x if torch.is_grad_enabled() else made.add_(x)


class AttentionLayer(nn.Module):
    """Multi-head attention from rows [B, N, C] to the keys of context rows [B, L, D], or to their own."""

    def __init__(self, channels: int, heads: int, *, context: int | None, bias: bool, op: Attention) -> None:
        super().__init__()
        self.op, self.heads = op, heads
        self.to_q = nn.Linear(channels, channels, bias=bias)
        self.to_k = nn.Linear(context or channels, channels, bias=bias)
        self.to_v = nn.Linear(context or channels, channels, bias=bias)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def keys(self, context: Tensor) -> Keys:
        """Context rows [B, L, D] -> their keys and values."""
        return self._split(self.to_k(context)), self._split(self.to_v(context))

    def forward(self, x: Tensor, keys: Keys | None = None, mask: Tensor | None = None) -> Tensor:
        """`mask` is added to the scores and broadcasts to [B, A, N, L]; the rows attend to themselves without keys."""
        k, v = self.keys(x) if keys is None else keys
        out: Tensor = self.to_out(self.op(self._split(self.to_q(x)), k, v, mask).transpose(1, 2).flatten(2))
        return out

    def _split(self, rows: Tensor) -> Tensor:
        return rows.view(*rows.shape[:-1], self.heads, -1).transpose(1, 2)  # [B, A, N, E]


class FeedForward(nn.Module):
    """The gated feed-forward layer, four times as wide inside: [B, N, C] -> [B, N, C]."""

    def __init__(self, channels: int, *, op: GEGLU) -> None:
        super().__init__()
        inner = 4 * channels
        # Released files number the second projection 2: a dropout that Kolors never uses stands between.
        self.net = nn.ModuleList([GatedProjection(channels, inner, op=op), nn.Identity(), nn.Linear(inner, channels)])

    def forward(self, x: Tensor) -> Tensor:
        """Project up, gate, project down."""
        out: Tensor = self.net[2](self.net[0](x))
        return out


class TransformerLayer(nn.Module):
    """Self-attention, attention to the text, feed-forward: each on a norm of the rows and added to them."""

    def __init__(self, channels: int, heads: int, *, context: int, ops: Ops) -> None:
        super().__init__()
        self.op = ops.add_layer_norm
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = AttentionLayer(channels, heads, context=None, bias=False, op=ops.attention)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = AttentionLayer(channels, heads, context=context, bias=False, op=ops.attention)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels, op=ops.geglu)

    def forward(self, x: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """x [B, N, C], the text's keys k and v [B, A, L, E], additive mask [B, 1, 1, L] or None -> [B, N, C]."""
        _, rows = self.op(x, None, self.norm1.weight, self.norm1.bias, self.norm1.eps)
        x, rows = add_norm(self.op, self.norm2, self.attn1(rows), x)
        x, rows = add_norm(self.op, self.norm3, self.attn2(rows, (k, v), mask), x)
        return plus(self.ff(rows), x)


class Transformer(nn.Module):
    """Transformer layers over the pixels of a feature map, beside a shortcut: [B, C, h, w] -> [B, C, h, w]."""

    def __init__(self, channels: int, heads: int, layers: int, *, context: int, groups: int, ops: Ops) -> None:
        super().__init__()
        self.run, self.op = ops.run, ops.group_norm_silu
        self.norm = nn.GroupNorm(groups, channels, 1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList(
            TransformerLayer(channels, heads, context=context, ops=ops) for _ in range(layers)
        )
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: list[Keys], mask: Tensor | None) -> Tensor:
        """x [B, C, h, w], the text's keys, of which each layer takes the first, additive mask [B, 1, 1, L] or None."""
        rows = self.proj_in(norm_silu(self.op, self.norm, x, silu=False).flatten(2).transpose(1, 2))  # [B, N, C]
        for layer in self.transformer_blocks:
            rows = self.run(layer, rows, *context.pop(0), mask)
        return plus(self.proj_out(rows).transpose(1, 2).view(x.shape), x)


class Downsample(nn.Module):
    """Halve the side by a strided convolution: [B, C, h, w] -> [B, C, ceil(h / 2), ceil(w / 2)]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve with stride 2."""
        out: Tensor = self.conv(x)
        return out


class Upsample(nn.Module):
    """Enlarge by repeating pixels, then convolve: [B, C, h, w] -> [B, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """`size` is (H, W): the side that was halved may have been odd."""
        out: Tensor = self.conv(F.interpolate(x, size=size, mode="nearest"))
        return out
