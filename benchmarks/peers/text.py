"""The text of a pair of prompts as the U-Net gets it: 256 rows as diffusers has them, or merged as ours."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from kolors_kernel.values import Conditioning

SLOTS = 256
REAL = (2, 30)
"""Real tokens of the negative prompt, which is empty, and of the prompt."""


def padded(width: int, pooled: int, dtype: str) -> tuple[Tensor, Tensor]:
    """Return rows [2, 256, width] whose padding is on the left and all the same, and pooled vectors [2, pooled]."""
    import torch

    draw = torch.Generator().manual_seed(3)
    rows = torch.randn(len(REAL), SLOTS, width, generator=draw).to(getattr(torch, dtype))
    for row, real in zip(rows, REAL, strict=True):
        row[: SLOTS - real] = row[0].clone()
    return rows, torch.randn(len(REAL), pooled, generator=draw).to(rows.dtype)


def merged(rows: Tensor, pooled: Tensor) -> Conditioning:
    """Return the conditioning in which one row stands for all padding."""
    import torch

    from kolors_kernel.values import Conditioning

    length = max(REAL) + 1
    tokens, bias = rows[:, SLOTS - length :].clone(), torch.full((len(rows), length), -torch.inf)
    for index, real in enumerate(REAL):
        tokens[index, : length - real] = rows[index, 0]
        bias[index, length - real :] = 0
        bias[index, length - real - 1] = math.log(SLOTS - real)
    return Conditioning(tokens, pooled, bias)


def spread(tokens: Tensor, bias: Tensor | None) -> Tensor:
    """Return the rows [B, 256, D] that merged ones stand for."""
    import torch

    if bias is None:
        return tokens
    spread_out = []
    for rows, weights in zip(tokens, bias, strict=True):
        kept = rows[weights > -torch.inf]
        padding = kept[:1].expand(SLOTS - len(kept) + 1, -1) if len(kept) < SLOTS else kept[:1]
        spread_out.append(torch.cat([padding, kept[1:]]))
    return torch.stack(spread_out)
