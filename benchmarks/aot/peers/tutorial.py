"""Flash attention in the manner of Triton's tutorial, at the attention of the SDXL U-Net.

Its forward is compiled in those of the tutorial's own configurations that have its largest blocks; its backward has
one, and cannot have keys in another number than queries.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch
from kolors_ops.operators import Launch, Pick, Sample
from torch import Tensor

from benchmarks.aot.peers.recorded import row_for
from benchmarks.aot.peers.shapes import Attention, attentions

FORWARD = {"128x64, 4 warps": (128, 64, 4, 3), "128x64, 8 warps": (128, 64, 8, 3), "64x64, 4 warps": (64, 64, 4, 3)}
"""Rows, keys, warps and stages."""


def samples(dtype: torch.dtype) -> Iterator[Sample]:
    """Yield forward and, of self attention, backward."""
    for shape in attentions():
        for name, settings in FORWARD.items():
            yield Sample(f"{shape.name} forward {name}", partial(_forward, shape, dtype, settings))
        if shape.rows == shape.keys:
            yield Sample(f"{shape.name} backward", partial(_backward, shape, dtype))


def attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return the result [B, A, N, E] and the sums of the weights, for as many keys as queries, in the interpreter."""
    shape = Attention(q.shape[0], q.shape[1], q.shape[2], k.shape[2], q.shape[3])
    out, lse = torch.empty_like(q), q.new_empty(q.shape[:-1], dtype=torch.float32)
    _launch(_planned_forward(shape, (64, 64, 4, 3), {"q": q, "k": k, "v": v, "lse": lse, "out": out}))
    return out, lse


def gradients(grad: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v, in the interpreter."""
    shape = Attention(q.shape[0], q.shape[1], q.shape[2], k.shape[2], q.shape[3])
    out, lse = attention(q, k, v)
    scaled = k * (1.4426950408889634 / math.sqrt(shape.width))  # as the tutorial does, in the dtype of k
    dq, dk, dv, delta = *(torch.empty_like(x) for x in (q, k, v)), torch.empty_like(lse)
    given = {"q": q, "k": scaled, "v": v, "grad": grad, "dq": dq, "dk": dk, "dv": dv, "lse": lse, "delta": delta}
    _launch(_planned_backward(shape, given, out))
    return dq, dk, dv


def _launch(launches: list[Launch]) -> None:
    for each in launches:
        each.kernel[each.grid](**each.options())


def _heads(shape: Attention, tokens: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape.batch * shape.heads, tokens, shape.width, dtype=dtype, device="meta")


def _forward(shape: Attention, dtype: torch.dtype, settings: tuple[int, int, int, int], pick: Pick) -> list[Launch]:
    q, k = _heads(shape, shape.rows, dtype), _heads(shape, shape.keys, dtype)
    lse = q.new_empty(q.shape[:-1], dtype=torch.float32)
    return _planned_forward(shape, settings, {"q": q, "k": k, "v": k, "lse": lse, "out": q})


def _backward(shape: Attention, dtype: torch.dtype, pick: Pick) -> list[Launch]:
    q = _heads(shape, shape.rows, dtype)
    per_row = q.new_empty(q.shape[:-1], dtype=torch.float32)
    given = dict.fromkeys(("q", "k", "v", "grad", "dq", "dk", "dv"), q)
    return _planned_backward(shape, {**given, "lse": per_row, "delta": per_row}, q)


def _planned_forward(shape: Attention, settings: tuple[int, int, int, int], tensors: dict[str, Tensor]) -> list[Launch]:
    from benchmarks.aot.peers.tutorial_kernel import tutorial_forward

    rows, keys, warps, stages = settings
    sizes = {"N": shape.rows, "L": shape.keys, "E": shape.width, "BLOCK_M": rows, "BLOCK_N": keys}
    arguments = {**tensors, **sizes, "sm_scale": 1 / math.sqrt(shape.width)}
    grid = (shape.rows // rows, shape.batch * shape.heads)
    return [Launch(tutorial_forward, grid, arguments, row_for(tutorial_forward, warps, stages))]


def _planned_backward(shape: Attention, tensors: dict[str, Tensor], out: Tensor) -> list[Launch]:
    from benchmarks.aot.peers.tutorial_kernel import tutorial_backward, tutorial_delta

    grid, sizes = (shape.rows // 128, shape.batch * shape.heads), {"N": shape.rows, "E": shape.width}
    summed = {"out": out, "grad": tensors["grad"], "delta": tensors["delta"], **sizes, "BLOCK_M": 128}
    blocks = {"BLOCK_M1": 32, "BLOCK_N1": 128, "BLOCK_M2": 128, "BLOCK_N2": 32}
    arguments = {**tensors, **sizes, **blocks, "sm_scale": 1 / math.sqrt(shape.width)}
    return [
        Launch(tutorial_delta, grid, summed, row_for(tutorial_delta, 4, 3)),
        Launch(tutorial_backward, grid, arguments, row_for(tutorial_backward, 4, 5)),
    ]
