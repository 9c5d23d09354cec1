"""Attention among the slots of texts that lie one behind the other, and the rotation that tells positions apart."""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from kolors_chatglm3.slots import Slots, runs

Asked: TypeAlias = Tensor | slice
"""The slots whose new hidden states are wanted, as an index."""
EVERY_SLOT = slice(None)
_SLOTS = 64
"""Slots of several texts that attend in one call: more would compute more that is masked, fewer make more calls."""


class Block(NamedTuple):
    """Neighbouring texts that attend in one call: the slots that ask, those that are asked, the texts they are of.

    bias [queries, keys] is added to the scores: -inf where a slot is not seen, else the log of how many it stands for;
    at least float32, since bfloat16 is a percent off in the log of a count.
    """

    queries: slice
    keys: slice
    texts: slice
    bias: Tensor

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [Q, A, E], k and v [R, groups, E] -> what the queries of this block find, [queries, A * E]."""
        kept = v.dtype
        # Elsewhere than on CPUs the bias must be of the dtype of the queries.
        dtype = kept if v.device.type == "cpu" else self.bias.dtype
        parts = ((q, self.queries), (k, self.keys), (v, self.keys))
        q, k, v = (x[rows].transpose(0, 1).unsqueeze(0).to(dtype) for x, rows in parts)
        found = F.scaled_dot_product_attention(q, k, v, self.bias, enable_gqa=True)
        return found[0].transpose(0, 1).flatten(1).to(kept)


def attention_blocks(slots: Slots, dtype: torch.dtype) -> list[Block]:
    """Return who sees whom among the slots.

    A real token sees the real tokens of its text up to itself, never padding. A slot of padding sees all of its text,
    padding and later tokens included: that is how the weights were released, and the backbone reads those slots too.
    """
    lengths = torch.tensor(slots.lengths, device=slots.ids.device)
    text = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
    slot = torch.arange(len(text), device=lengths.device)
    weight = slots.count.log().to(torch.promote_types(dtype, torch.float32))
    blocks, first, start = [], 0, 0
    for last, stop in runs(slots.lengths, _SLOTS):
        rows = slice(start, stop)
        real, same = slots.real[rows], text[rows, None] == text[rows]
        seen = same & (~real[:, None] | (real & (slot[rows, None] >= slot[rows])))
        bias = weight[rows].expand_as(seen).masked_fill(~seen, -math.inf)
        blocks.append(Block(rows, rows, slice(first, last), bias))
        first, start = last, stop
    return blocks


def the_last_of(slots: Slots, blocks: list[Block]) -> tuple[list[Block], Tensor]:
    """Return the blocks in which only the last slot of each text asks, and those slots [texts]."""
    last = slots.ends().to(slots.ids.device) - 1
    only = [
        block._replace(queries=block.texts, bias=block.bias[last[block.texts] - block.keys.start]) for block in blocks
    ]
    return only, last


def rotation(positions: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Return cos + i sin of positions [R] * 10000^(-4j / width), [R, width / 2] complex.

    Only the first half of a head is turned, so the second half of the angles are 0. They are computed in float64 for a
    model in float64 and in float32 for all others; for half precision cos and sin are rounded to `dtype`, as they were
    when the released weights were trained.
    """
    exact, half = torch.promote_types(dtype, torch.float32), width // 2
    frequencies = 1.0 / 10000 ** (torch.arange(0, half, 2, dtype=exact, device=positions.device) / half)
    angles = F.pad(torch.outer(positions.to(exact), frequencies), (0, half // 2))
    return torch.complex(angles.cos().to(dtype).to(exact), angles.sin().to(dtype).to(exact))
