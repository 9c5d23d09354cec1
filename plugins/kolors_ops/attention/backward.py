"""The gradients of attention, planned: which kernels are launched over which tensors.

The sums of grad * out along the last dimension are needed by both kernels. The first has both at hand and writes
them into `delta`, which the caller allocates by `scratch(q)`; computing them again for each block of keys would read
`out` as often as `grad`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from kolors_ops.operators import Launch, Pick, Sample
from kolors_ops.table import Row

KERNELS_BACKWARD = ("attention_backward_queries", "attention_backward_keys")
EVEN = 64
"""Where this divides the keys and a head is as wide as its block, dq needs no masks; else its row is "masked"."""
WIDEST = 128
"""The width of a head that the widest rows are for."""
SHAPES = (
    # queries, keys, heads, width of a head
    (4096, 4096, 10, 64),
    (1024, 1024, 20, 64),
    (4096, 256, 10, 64),
    (1024, 256, 20, 64),
    (4096, 77, 10, 64),
    (4096, 4096, 8, 40),
    (1024, 1024, 8, 80),
    (1024, 1024, 8, 128),
)
"""Of the SDXL U-Net for a picture of 1024 x 1024, and the other widths of a head that are in use."""


def scratch(q: Tensor) -> Tensor:
    """Return what the plan needs beside its results: `delta` [B, A, N] float32, not filled, for q [B, A, N, E]."""
    return q.new_empty(q.shape[:-1], dtype=torch.float32)


def plan_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
    delta: Tensor,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    pick: Pick,
) -> list[Launch]:
    """Plan dq, dk and dv from the gradient of the result, and `delta` on the way.

    grad, q, out, dq [B, A, N, E], k, v, dk, dv [B, A, L, E]: any strides, the last 1. bias: None or added to the
    scores of all rows and heads, [B or 1, 1, 1, L]. lse [B, A, N] float32, contiguous: log2 of the sum of 2 to the
    power of the scores * log2(e). delta: from `scratch(q)`. The launches must run in order.
    """
    from kolors_ops.attention.kernel_backward import attention_backward_keys, attention_backward_queries

    batch, heads, rows, width = q.shape
    keys = k.shape[-2]
    wide = max(16, 1 << (width - 1).bit_length())
    by_queries = pick(KERNELS_BACKWARD[0], q, width, "masked" if keys % EVEN or wide != width else "")
    # A padded head takes more registers than one that fills its block, so it has the row of the widest.
    by_keys = pick(KERNELS_BACKWARD[1], q, width if wide == width else max(width, WIDEST))
    if bias is not None:
        bias = bias.expand(batch, 1, 1, keys)
    shared = {
        **{"lse": lse, "delta": delta, "bias": bias},
        **{"bias_batch": 0 if bias is None else bias.stride(0), "bias_key": 0 if bias is None else bias.stride(-1)},
        **_tensors(grad=grad, q=q, k=k, v=v),
        **{"A": heads, "N": rows, "L": keys, "E": width, "SCALE": 1 / math.sqrt(width)},
        "WIDTH": wide,
        "ALIGNED": all(step % 8 == 0 for x in (grad, q, k, v, out, dq, dk, dv) for step in x.stride()[:-1]),
    }

    def even(row: Row) -> dict[str, bool]:
        return {
            "EVEN_QUERIES": rows % row.blocks["QUERIES"] == 0,
            "EVEN_KEYS": keys % row.blocks["KEYS"] == 0,
        }

    return [
        Launch(
            attention_backward_queries,
            (-(-rows // by_queries.blocks["QUERIES"]), heads, batch),
            {**shared, **_tensors(out=out, dq=dq), **even(by_queries)},
            by_queries,
        ),
        Launch(
            attention_backward_keys,
            (-(-keys // by_keys.blocks["KEYS"]), heads, batch),
            {**shared, **_tensors(dk=dk, dv=dv), **even(by_keys)},
            by_keys,
        ),
    ]


def backward_samples(dtype: torch.dtype) -> Iterator[Sample]:
    """Yield plans of the backward pass at the shapes of models, in a batch of two; q, k and v are views of one tensor.

    With keys of their own (cross attention), once without and once with a bias.
    """
    for rows, keys, heads, width in SHAPES:
        names = f"{rows}x{keys}, {heads} heads of {width}, backward"
        made = torch.empty(2, rows, heads, width, dtype=dtype, device="meta").transpose(1, 2)
        if rows == keys:
            packed = torch.empty(2, rows, 3, heads, width, dtype=dtype, device="meta").unbind(2)
            q, k, v = (x.transpose(1, 2) for x in packed)
        else:
            q = made
            packed = torch.empty(2, keys, 2, heads, width, dtype=dtype, device="meta").unbind(2)
            k, v = (x.transpose(1, 2) for x in packed)
        of_keys = torch.empty(2, keys, heads, width, dtype=dtype, device="meta").transpose(1, 2)
        per_row = torch.empty(2, heads, rows, dtype=torch.float32, device="meta")
        tail = (made, per_row, per_row, made, of_keys, of_keys)
        yield Sample(names, partial(plan_backward, made, q, k, v, None, *tail))
        if rows != keys:
            bias = torch.empty(2, 1, 1, keys, dtype=torch.float32, device="meta")
            yield Sample(f"{names}, bias", partial(plan_backward, made, q, k, v, bias, *tail))


def _tensors(**tensors: Tensor) -> dict[str, Tensor | int]:
    """Return each tensor [B, A, rows, E] as the kernels take it: itself and its strides by name."""
    given: dict[str, Tensor | int] = {}
    for name, x in tensors.items():
        strides = zip(("batch", "head", "row"), x.stride(), strict=False)
        given |= {name: x, **{f"{name}_{of}": stride for of, stride in strides}}
    return given
