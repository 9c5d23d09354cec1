"""The SDXL VAE as a torch module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional as F

from kolors_sdxl.blocks import AttentionLayer, Keys, ResnetBlock, Upsample, norm_silu, plus

if TYPE_CHECKING:
    from kolors_kernel.protocols import Attention, GroupNormSiLU
    from kolors_sdxl.architecture import VAEArchitecture

_EPS = 1e-6


class VAE(nn.Module):
    """Encodes pictures to the moments of latents and decodes latents; its keys are the released files'."""

    def __init__(self, a: VAEArchitecture, *, attention: Attention, op: GroupNormSiLU) -> None:
        super().__init__()
        self.encoder = _Encoder(a, attention, op)
        self.decoder = _Decoder(a, attention, op)
        self.quant_conv = nn.Conv2d(2 * a.latent_channels, 2 * a.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(a.latent_channels, a.latent_channels, 1)

    def encode(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> means and log variances [B, 2C, h, w]."""
        out: Tensor = self.quant_conv(self.encoder(images))
        return out

    def decode(self, latents: Tensor) -> Tensor:
        """Unscaled latents [B, C, h, w] -> [B, 3, H, W]."""
        out: Tensor = self.decoder(self.post_quant_conv(latents))
        return out


class _Encoder(nn.Module):
    def __init__(self, a: VAEArchitecture, attention: Attention, op: GroupNormSiLU) -> None:
        super().__init__()
        self.op = op
        first, last = a.block_channels[0], a.block_channels[-1]
        before = (first, *a.block_channels)
        self.conv_in = nn.Conv2d(3, first, 3, padding=1)
        self.down_blocks = nn.ModuleList(
            _DownLevel(before[level], channels, a, op, halves=level < len(a.block_channels) - 1)
            for level, channels in enumerate(a.block_channels)
        )
        self.mid_block = _Middle(last, a, attention, op)
        self.conv_norm_out = nn.GroupNorm(a.groups, last, _EPS)
        self.conv_out = nn.Conv2d(last, 2 * a.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        out: Tensor = self.conv_out(norm_silu(self.op, self.conv_norm_out, self.mid_block(x)))
        return out


class _Decoder(nn.Module):
    def __init__(self, a: VAEArchitecture, attention: Attention, op: GroupNormSiLU) -> None:
        super().__init__()
        self.op = op
        last, first = a.block_channels[-1], a.block_channels[0]
        before = (last, *reversed(a.block_channels))
        self.conv_in = nn.Conv2d(a.latent_channels, last, 3, padding=1)
        self.up_blocks = nn.ModuleList(
            _UpLevel(before[index], channels, a, op, doubles=index < len(a.block_channels) - 1)
            for index, channels in enumerate(reversed(a.block_channels))
        )
        self.mid_block = _Middle(last, a, attention, op)
        self.conv_norm_out = nn.GroupNorm(a.groups, first, _EPS)
        self.conv_out = nn.Conv2d(first, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        out: Tensor = self.conv_out(norm_silu(self.op, self.conv_norm_out, x))
        return out


class _DownLevel(nn.Module):
    def __init__(self, before: int, channels: int, a: VAEArchitecture, op: GroupNormSiLU, *, halves: bool) -> None:
        super().__init__()
        inputs = [before] + [channels] * (a.layers_per_block - 1)
        self.resnets = nn.ModuleList(_resnet(each, channels, a, op) for each in inputs)
        self.downsamplers = nn.ModuleList([_Halve(channels)]) if halves else None

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        return x if self.downsamplers is None else self.downsamplers[0](x)


class _UpLevel(nn.Module):
    def __init__(self, before: int, channels: int, a: VAEArchitecture, op: GroupNormSiLU, *, doubles: bool) -> None:
        super().__init__()
        inputs = [before] + [channels] * a.layers_per_block
        self.resnets = nn.ModuleList(_resnet(each, channels, a, op) for each in inputs)
        self.upsamplers = nn.ModuleList([Upsample(channels)]) if doubles else None

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        return x if self.upsamplers is None else self.upsamplers[0](x, (2 * x.shape[2], 2 * x.shape[3]))


class _Halve(nn.Module):
    """Halve the side; the picture is padded on the right and below only, unlike in the U-Net."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class _Middle(nn.Module):
    def __init__(self, channels: int, a: VAEArchitecture, attention: Attention, op: GroupNormSiLU) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(_resnet(channels, channels, a, op) for _ in range(2))
        self.attentions = nn.ModuleList([_PixelAttention(channels, attention, op, groups=a.groups)])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.resnets[1](self.attentions[0](self.resnets[0](x)))
        return out


class _PixelAttention(AttentionLayer):
    """One head over all pixels, on their group norm and beside a shortcut: [B, C, h, w] -> [B, C, h, w]."""

    def __init__(self, channels: int, attention: Attention, op: GroupNormSiLU, *, groups: int) -> None:
        super().__init__(channels, 1, context=None, bias=True, op=attention)
        self.norm_op = op
        self.group_norm = nn.GroupNorm(groups, channels, _EPS)

    def forward(self, x: Tensor, keys: Keys | None = None, mask: Tensor | None = None) -> Tensor:
        normal = norm_silu(self.norm_op, self.group_norm, x, silu=False)
        rows = super().forward(normal.flatten(2).transpose(1, 2), keys, mask)  # [B, N, C]
        return plus(rows.transpose(1, 2).view(x.shape), x)


def _resnet(before: int, channels: int, a: VAEArchitecture, op: GroupNormSiLU) -> ResnetBlock:
    return ResnetBlock(before, channels, embedding=None, groups=a.groups, eps=_EPS, op=op)
