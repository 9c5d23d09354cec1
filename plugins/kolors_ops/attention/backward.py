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

    queries, keys = _rows(q, k, pick)
    strided = (grad, q, k, v, out, dq, dk, dv)
    shared = {
        **{"lse": lse, "delta": delta, **_bias(bias, q, k), **_tensors(grad=grad, q=q, k=k, v=v), **_sizes(q, k)},
        "ALIGNED": all(step % 8 == 0 for x in strided for step in x.stride()[:-1]),
    }
    first = {**shared, **_tensors(out=out, dq=dq), **_even(q, k, queries)}
    second = {**shared, **_tensors(dk=dk, dv=dv), **_even(q, k, keys)}
    return [
        Launch(attention_backward_queries, _grid(q, queries.blocks["QUERIES"]), first, queries),
        Launch(attention_backward_keys, _grid(k, keys.blocks["KEYS"]), second, keys),
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


def _rows(q: Tensor, k: Tensor, pick: Pick) -> tuple[Row, Row]:
    """Return the rows of the two kernels."""
    width, wide = q.shape[-1], padded(q.shape[-1])
    by_queries = pick(KERNELS_BACKWARD[0], q, width, "masked" if k.shape[2] % EVEN or wide != width else "")
    # A padded head takes more registers than one that fills its block, so it has the row of the widest.
    by_keys = pick(KERNELS_BACKWARD[1], q, width if wide == width else max(width, WIDEST))
    return by_queries, by_keys


def _bias(bias: Tensor | None, q: Tensor, k: Tensor) -> dict[str, Tensor | int | None]:
    if bias is None:
        return {"bias": None, "bias_batch": 0, "bias_key": 0}
    bias = bias.expand(q.shape[0], 1, 1, k.shape[2])
    return {"bias": bias, "bias_batch": bias.stride(0), "bias_key": bias.stride(-1)}


def _sizes(q: Tensor, k: Tensor) -> dict[str, int | float]:
    _, heads, rows, width = q.shape
    sizes = {"A": heads, "N": rows, "L": k.shape[2], "E": width, "WIDTH": padded(width)}
    return {**sizes, "SCALE": 1 / math.sqrt(width)}


def _even(q: Tensor, k: Tensor, row: Row) -> dict[str, bool]:
    blocks = row.blocks
    return {"EVEN_QUERIES": q.shape[2] % blocks["QUERIES"] == 0, "EVEN_KEYS": k.shape[2] % blocks["KEYS"] == 0}


def _grid(x: Tensor, block: int) -> tuple[int, int, int]:
    batch, heads, rows, _ = x.shape
    return -(-rows // block), heads, batch


def padded(width: int) -> int:
    """Return the width of the block that holds a head: a power of two, as much as a product of matrices needs."""
    return max(16, 1 << (width - 1).bit_length())
