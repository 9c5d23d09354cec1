"""Our group norm and attention at the shapes at which peers are compiled, on tensors as they have them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from kolors_ops.operators import Launch, Pick, Sample
from torch import Tensor

from benchmarks.aot.peers.shapes import EPS, GROUPS, attentions, norms, tensors


def samples(dtype: torch.dtype) -> Iterator[Sample]:
    """Yield forward and backward of each group norm and attention of the SDXL U-Net."""
    for shape in norms():
        x, weight = tensors(shape, dtype)
        yield Sample(f"{shape.name} forward", partial(_norm, x, weight))
        yield Sample(f"{shape.name} backward", partial(_norm_backward, x, weight))
    for each in attentions():
        q, k = (
            torch.empty(each.batch, each.heads, tokens, each.width, dtype=dtype, device="meta")
            for tokens in (each.rows, each.keys)
        )
        yield Sample(f"{each.name} forward", partial(_attention, q, k))
        yield Sample(f"{each.name} backward", partial(_attention_backward, q, k))


def _norm(x: Tensor, weight: Tensor, pick: Pick) -> list[Launch]:
    from kolors_ops.group_norm_silu.plans import Forward, plan_forward, scratch_forward

    statistics = x.new_empty((x.shape[0], GROUPS), dtype=torch.float32)
    given = Forward(x, weight, weight, x, statistics, statistics)
    return list(plan_forward(given, scratch_forward(x, GROUPS, pick), EPS, True, pick))


def _norm_backward(x: Tensor, weight: Tensor, pick: Pick) -> list[Launch]:
    from kolors_ops.group_norm_silu.plans import Backward, plan_backward, scratch_backward

    statistics = x.new_empty((x.shape[0], GROUPS), dtype=torch.float32)
    given = Backward(x, x, weight, weight, statistics, statistics, x)
    return list(plan_backward(given, scratch_backward(x, GROUPS, pick), True, pick))


def _attention_backward(q: Tensor, k: Tensor, pick: Pick) -> list[Launch]:
    from kolors_ops.attention.backward import plan_backward, scratch

    per_row = q.new_empty(q.shape[:-1], dtype=torch.float32)
    return list(plan_backward(q, q, k, k, None, q, per_row, scratch(q), q, k, k, pick))


def _attention(q: Tensor, k: Tensor, pick: Pick) -> list[Launch]:
    from kolors_ops.attention.op import plan_forward

    per_row = q.new_empty(q.shape[:-1], dtype=torch.float32)
    return list(plan_forward(q, k, k, None, q, per_row, pick))
