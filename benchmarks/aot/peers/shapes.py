"""The shapes at which peers are compiled: every group norm of the SDXL U-Net, and its attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.shapes import UNETS

GROUPS, EPS = 32, 1e-5
UNET = UNETS["kolors_1024"]


@dataclass(frozen=True)
class Norm:
    """A group norm of a picture [batch, channels, side, side]."""

    batch: int
    channels: int
    side: int

    @property
    def name(self) -> str:
        """As the ops' own samples are named: 320@128x128."""
        return f"{self.channels}@{self.side}x{self.side}"


@dataclass(frozen=True)
class Attention:
    """An attention of q [batch, heads, rows, width] over as many keys."""

    batch: int
    heads: int
    rows: int
    keys: int
    width: int

    @property
    def name(self) -> str:
        """Rows by keys."""
        return f"{self.rows}x{self.keys}"


def norms() -> list[Norm]:
    """Return every group norm of a forward of the U-Net for a picture of 1024 x 1024, the largest pictures first."""
    found = UNET.group_norm_silu()
    ordered = sorted(found, key=lambda each: (-each[2], each[1]))
    return [Norm(batch, channels, side) for batch, channels, side, _ in ordered]


def attentions() -> list[Attention]:
    """Return every attention of such a forward, of a picture to itself and to a text."""
    return [Attention(*each) for each in sorted(UNET.attention(), reverse=True)]


def tensors(norm: Norm, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return a picture [B, C, h, w] and a weight [C], without memory."""
    x = torch.empty(norm.batch, norm.channels, norm.side, norm.side, dtype=dtype, device="meta")
    return x, x.new_empty(norm.channels)
