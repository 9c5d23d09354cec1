"""The operations of the U-Net as OpenVINO computes them fastest."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

from openvino import opset15 as op
from torch.nn import functional as F

from kolors_sdxl.blocks import Ops
from kolors_sdxl.openvino_graph import GraphTensor, group_norm, linear
from kolors_sdxl.openvino_graph import silu as swish

if TYPE_CHECKING:
    from torch import Tensor


def attention(q: GraphTensor, k: GraphTensor, v: GraphTensor, mask: GraphTensor | None = None) -> GraphTensor:
    """Attend: q [B, A, N, E], k and v [B, A, L, E], additive mask [B, 1, 1, L] or None -> [B, A, N, E].

    With a mask in float32, as the mask is: the log of a count loses a percent in bfloat16.
    """
    dtype = q.dtype
    if mask is not None:
        q, k, v = q.float(), k.float(), v.float()
    scores = q.then(op.matmul, k.output, False, True) * (1 / math.sqrt(q.shape[-1]))
    weights = (scores if mask is None else scores + mask).then(op.softmax, -1)
    return weights.then(op.matmul, v.output, False, False).to(dtype)


def group_norm_silu(
    x: GraphTensor, weight: Tensor, bias: Tensor, groups: int, eps: float, *, silu: bool = True
) -> GraphTensor:
    """silu(group_norm(x)), or the norm alone, of x [B, C, h, w]."""
    normal = group_norm(x, groups, weight, bias, eps)
    return swish(normal) if silu else normal


def geglu(x: GraphTensor) -> GraphTensor:
    """[..., 2F] -> [..., F], x being the result of a linear layer.

    As two layers of half the width, since OpenVINO copies the halves of a result to part them.
    """
    assert x.product is not None  # what the gated projection hands over
    rows, weight, bias = x.product
    value, gate = (linear(rows, *half) for half in zip(weight.chunk(2), bias.chunk(2), strict=True))
    return value * gate.then(op.gelu, "erf")


def add_layer_norm(
    x: GraphTensor, added: GraphTensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[GraphTensor, GraphTensor]:
    """Return x + added, or x itself, and its layer norm: [..., D] each."""
    total: Any = x if added is None else x + added
    return total, cast(Any, F.layer_norm(total, weight.shape, weight, bias, eps))


OPS = Ops(*cast(Any, (attention, group_norm_silu, geglu, add_layer_norm)))
"""What a U-Net is made with to be written as a graph."""
