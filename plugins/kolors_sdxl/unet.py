"""The SDXL U-Net with Kolors' two changed input layers, as a torch module."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kolors_sdxl.blocks import (
    AttentionLayer,
    Downsample,
    Keys,
    Ops,
    ResnetBlock,
    Transformer,
    TransformerLayer,
    Upsample,
    norm_silu,
)

if TYPE_CHECKING:
    from kolors_sdxl.architecture import UNetArchitecture, UNetShape


class UNet(nn.Module):
    """Predicts the noise from noisy latents, time, text and size; its state dict has the released files' keys."""

    def __init__(self, shape: UNetShape, ops: Ops) -> None:
        super().__init__()
        a = shape.architecture
        self.ops, self.first, self.size_width = ops, a.block_channels[0], a.size_embedding_width
        embedding = 4 * self.first
        self.conv_in = nn.Conv2d(shape.channels, self.first, 3, padding=1)
        self.time_embedding = _Embedding(self.first, embedding)
        self.add_embedding = _Embedding(shape.pooled_width + 6 * a.size_embedding_width, embedding)
        self.encoder_hid_proj = nn.Linear(shape.context_width, a.cross_attention_width) if a.text_projection else None
        self.down_blocks = nn.ModuleList(_down_blocks(a, ops))
        self.mid_block = _mid_block(a, ops)
        self.up_blocks = nn.ModuleList(_up_blocks(a, ops))
        self.conv_norm_out = nn.GroupNorm(a.groups, self.first, a.norm_eps)
        self.conv_out = nn.Conv2d(self.first, shape.out_channels, 3, padding=1)

    def context(self, tokens: Tensor) -> list[Keys]:
        """Text rows [B, L, D] -> what each transformer layer attends to of them, in the order the layers run.

        The same at every step, so that a caller may keep it for as long as text and weights stay as they are.
        """
        rows = tokens if self.encoder_hid_proj is None else self.encoder_hid_proj(tokens)
        return [attention.keys(rows) for attention in self._text_attentions()]

    def text_readers(self) -> list[nn.Module]:
        """Return the layers that `context` is made by."""
        projection: list[nn.Module] = [] if self.encoder_hid_proj is None else [self.encoder_hid_proj]
        return projection + [part for reader in self._text_attentions() for part in (reader.to_k, reader.to_v)]

    def _text_attentions(self) -> list[AttentionLayer]:
        return [layer.attn2 for layer in self.modules() if isinstance(layer, TransformerLayer)]

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: list[Keys],
        pooled: Tensor,
        size: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """x [B, C, h, w], timesteps [B], what `context` gives, pooled [B, P], size [B, 6], additive mask [B, 1, 1, L]
        or None -> [B, C_out, h, w].
        """
        time = self.time_embedding(waves(timesteps, self.first).to(x.dtype))
        sizes = waves(size.flatten(), self.size_width).view(len(size), -1).to(x.dtype)
        embedding = F.silu(time + self.add_embedding(torch.cat([pooled, sizes], dim=1)))
        keys = list(context)  # each layer takes the next
        x = self.conv_in(x)
        skips = [x]
        for block in self.down_blocks:
            x = block(x, embedding, keys, mask, skips)
        x = self.mid_block(x, embedding, keys, mask)
        for block in self.up_blocks:
            x = block(x, embedding, keys, mask, skips)
        out: Tensor = self.conv_out(norm_silu(self.ops.group_norm_silu, self.conv_norm_out, x))
        return out


def waves(values: Tensor, width: int) -> Tensor:
    """Return cosines and then sines of values [N] at frequencies falling from 1 to 1/10000, [N, width] float32.

    In float32 whatever the net computes in, since the released weights were trained on these very numbers.
    """
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=values.device)
    angles = values[:, None].float() * torch.exp(-math.log(10000) * steps / half)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class _Embedding(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, out)
        self.linear_2 = nn.Linear(out, out)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear_2(F.silu(self.linear_1(x)))
        return out


class _Level(nn.Module):
    """Residual blocks at one resolution, each followed by a transformer where there is one."""

    def __init__(self, inputs: list[int], level: int, a: UNetArchitecture, ops: Ops, *, transformers: int) -> None:
        super().__init__()
        self.run = ops.run
        channels, layers = a.block_channels[level], a.transformer_layers[level]
        embedding = 4 * a.block_channels[0]
        self.resnets = nn.ModuleList(
            ResnetBlock(before, channels, embedding=embedding, groups=a.groups, eps=a.norm_eps, op=ops.group_norm_silu)
            for before in inputs
        )
        self.attentions = nn.ModuleList(
            Transformer(channels, a.heads[level], layers, context=a.cross_attention_width, groups=a.groups, ops=ops)
            for _ in range(transformers if layers else 0)
        )

    def attend(self, index: int, x: Tensor, keys: list[Keys], mask: Tensor | None) -> Tensor:
        """Apply the transformer of this index, if this resolution has any."""
        return self.attentions[index](x, keys, mask) if self.attentions else x


class _Down(_Level):
    def __init__(self, before: int, level: int, a: UNetArchitecture, ops: Ops) -> None:
        channels, last = a.block_channels[level], level == len(a.block_channels) - 1
        inputs = [before] + [channels] * (a.layers_per_block - 1)
        super().__init__(inputs, level, a, ops, transformers=len(inputs))
        self.downsamplers = None if last else nn.ModuleList([Downsample(channels)])

    def forward(
        self, x: Tensor, embedding: Tensor, keys: list[Keys], mask: Tensor | None, skips: list[Tensor]
    ) -> Tensor:
        for index, resnet in enumerate(self.resnets):
            x = self.attend(index, self.run(resnet, x, embedding), keys, mask)
            skips.append(x)
        if self.downsamplers is not None:
            x = self.downsamplers[0](x)
            skips.append(x)
        return x


class _Middle(_Level):
    def forward(self, x: Tensor, embedding: Tensor, keys: list[Keys], mask: Tensor | None) -> Tensor:
        x = self.attend(0, self.run(self.resnets[0], x, embedding), keys, mask)
        return self.run(self.resnets[1], x, embedding)


class _Up(_Level):
    def __init__(self, inputs: list[int], level: int, a: UNetArchitecture, ops: Ops) -> None:
        super().__init__(inputs, level, a, ops, transformers=len(inputs))
        self.upsamplers = nn.ModuleList([Upsample(a.block_channels[level])]) if level else None

    def forward(
        self, x: Tensor, embedding: Tensor, keys: list[Keys], mask: Tensor | None, skips: list[Tensor]
    ) -> Tensor:
        for index, resnet in enumerate(self.resnets):
            x = self.run(resnet, torch.cat([x, skips.pop()], dim=1), embedding)
            x = self.attend(index, x, keys, mask)
        if self.upsamplers is not None:
            x = self.upsamplers[0](x, tuple(skips[-1].shape[2:]))
        return x


def _down_blocks(a: UNetArchitecture, ops: Ops) -> list[_Down]:
    before = (a.block_channels[0], *a.block_channels)
    return [_Down(before[level], level, a, ops) for level in range(len(a.block_channels))]


def _mid_block(a: UNetArchitecture, ops: Ops) -> _Middle:
    level = len(a.block_channels) - 1
    return _Middle([a.block_channels[level]] * 2, level, a, ops, transformers=1)


def _up_blocks(a: UNetArchitecture, ops: Ops) -> list[_Up]:
    """Make the way up: each residual block reads what is below it beside the skip that the way down left."""
    skips = [a.block_channels[0]]  # channels, in the order the way down leaves them
    for level, channels in enumerate(a.block_channels):
        skips += [channels] * (a.layers_per_block + (level < len(a.block_channels) - 1))
    blocks, below = [], a.block_channels[-1]
    for level in reversed(range(len(a.block_channels))):
        channels = a.block_channels[level]
        inputs = [(channels if index else below) + skips.pop() for index in range(a.layers_per_block + 1)]
        blocks.append(_Up(inputs, level, a, ops))
        below = channels
    return blocks
