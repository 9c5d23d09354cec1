"""The kernels of attention's gradient: one sums over keys for dq, another over queries for dk and dv.

Probabilities are computed again from the scores and their log-sum-exp, both in base 2. Every program owns what it
writes, so that sums have one order and nothing is added to memory by several.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile(start, rows, columns, stride, count, E: tl.constexpr, EVEN: tl.constexpr):
    """Load rows x columns of a matrix [count, E] whose rows are `stride` apart; what lies beside it is 0."""
    at = start + rows[:, None] * stride + columns[None, :]
    full: tl.constexpr = columns.shape[0] == E
    if EVEN and full:
        return tl.load(at)
    if full:
        return tl.load(at, mask=rows[:, None] < count, other=0.0)
    if EVEN:
        return tl.load(at, mask=columns[None, :] < E, other=0.0)
    return tl.load(at, mask=(rows[:, None] < count) & (columns[None, :] < E), other=0.0)


@triton.jit
def head_of(x, batch, head, row, x_batch, x_head, x_row, ALIGNED: tl.constexpr):
    """Return where a head's rows begin in x [B, A, rows, E], from one row on."""
    offset = batch * x_batch + head * x_head + row * x_row
    if ALIGNED:
        offset = tl.multiple_of(offset, 8)  # known of no stride that is not a multiple of 16
    return x + offset


@triton.jit
def loaded(at, inside, other: tl.constexpr, EVEN: tl.constexpr):
    """Load a number for each row, and `other` where a row is not there."""
    return tl.load(at) if EVEN else tl.load(at, mask=inside, other=other)


@triton.jit
def put(
    x, made, inside, rows, columns, batch, head, row, x_batch, x_head, x_row, E: tl.constexpr, ALIGNED: tl.constexpr
):
    """Store rows x columns of a head of x [B, A, rows, E], from one row on."""
    start = head_of(x, batch, head, row, x_batch, x_head, x_row, ALIGNED)
    mask = inside[:, None] & (columns[None, :] < E)
    tl.store(start + rows[:, None] * x_row + columns[None, :], made.to(x.dtype.element_ty), mask=mask)


@triton.jit
def attention_backward_queries(
    grad, q, k, v, bias, out, lse, delta, dq,
    grad_batch, grad_head, grad_row, q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    bias_batch, bias_key, out_batch, out_head, out_row, dq_batch, dq_head, dq_row,
    A, N, L, SCALE: tl.constexpr, E: tl.constexpr, WIDTH: tl.constexpr, ALIGNED: tl.constexpr,
    EVEN_QUERIES: tl.constexpr, EVEN_KEYS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One program: the gradient of QUERIES rows of one head's q, and for each its grad . out, into delta [B, A, N]."""
    first, head, batch = tl.program_id(0) * QUERIES, tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    rows, columns = tl.arange(0, QUERIES), tl.arange(0, WIDTH)
    keys, skip = tl.arange(0, KEYS), first.to(tl.int64)
    grad = head_of(grad, batch, head, skip, grad_batch, grad_head, grad_row, ALIGNED)
    out = head_of(out, batch, head, skip, out_batch, out_head, out_row, ALIGNED)
    q = head_of(q, batch, head, skip, q_batch, q_head, q_row, ALIGNED)
    upper = tile(grad, rows, columns, grad_row, N - first, E, EVEN_QUERIES)
    made = tile(out, rows, columns, out_row, N - first, E, EVEN_QUERIES)
    asked = tile(q, rows, columns, q_row, N - first, E, EVEN_QUERIES)
    per_row = (batch * A + head) * N + skip + rows
    inside = rows < N - first
    dot = tl.sum(upper.to(tl.float32) * made.to(tl.float32), axis=1)
    tl.store(delta + per_row, dot, mask=inside)
    normal = tl.load(lse + per_row, mask=inside, other=float("inf"))  # so that a row that is not there has no share
    k = head_of(k, batch, head, 0, k_batch, k_head, k_row, ALIGNED)
    v = head_of(v, batch, head, 0, v_batch, v_head, v_row, ALIGNED)
    total = tl.zeros((QUERIES, WIDTH), tl.float32)
    for start in range(0, L, KEYS):
        key = tile(k + tl.cast(start, tl.int64) * k_row, keys, columns, k_row, L - start, E, EVEN_KEYS)
        value = tile(v + tl.cast(start, tl.int64) * v_row, keys, columns, v_row, L - start, E, EVEN_KEYS)
        scores = tl.dot(asked, tl.trans(key), input_precision="ieee")
        scores *= SCALE * 1.4426950408889634
        if bias is not None:
            place = bias + batch * bias_batch + (start + keys).to(tl.int64) * bias_key
            added = loaded(place, keys < L - start, float("-inf"), EVEN_KEYS).to(tl.float32) * 1.4426950408889634
            scores += added[None, :]
        elif not EVEN_KEYS:
            scores += tl.where(keys < L - start, 0.0, float("-inf"))[None, :]
        seen = tl.math.exp2(scores - normal[:, None])
        slope = seen * (tl.dot(upper, tl.trans(value), input_precision="ieee") - dot[:, None])
        total = tl.dot(slope.to(key.dtype), key, total, input_precision="ieee")
    put(dq, total * SCALE, inside, rows, columns, batch, head, skip, dq_batch, dq_head, dq_row, E, ALIGNED)


@triton.jit
def attention_backward_keys(
    grad, q, k, v, bias, lse, delta, dk, dv,
    grad_batch, grad_head, grad_row, q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    bias_batch, bias_key, dk_batch, dk_head, dk_row, dv_batch, dv_head, dv_row,
    A, N, L, SCALE: tl.constexpr, E: tl.constexpr, WIDTH: tl.constexpr, ALIGNED: tl.constexpr,
    EVEN_QUERIES: tl.constexpr, EVEN_KEYS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One program: the gradients of KEYS rows of one head's k and v, from delta [B, A, N] = grad . out."""
    first, head, batch = tl.program_id(0) * KEYS, tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    keys, columns = tl.arange(0, KEYS), tl.arange(0, WIDTH)
    rows, skip = tl.arange(0, QUERIES), first.to(tl.int64)
    k = head_of(k, batch, head, skip, k_batch, k_head, k_row, ALIGNED)
    v = head_of(v, batch, head, skip, v_batch, v_head, v_row, ALIGNED)
    key = tile(k, keys, columns, k_row, L - first, E, EVEN_KEYS)
    value = tile(v, keys, columns, v_row, L - first, E, EVEN_KEYS)
    inside = keys < L - first
    if bias is not None:
        place = bias + batch * bias_batch + (skip + keys) * bias_key
        added = tl.load(place, mask=inside, other=float("-inf")).to(tl.float32) * 1.4426950408889634
    elif not EVEN_KEYS:
        added = tl.where(inside, 0.0, float("-inf"))
    q = head_of(q, batch, head, 0, q_batch, q_head, q_row, ALIGNED)
    grad = head_of(grad, batch, head, 0, grad_batch, grad_head, grad_row, ALIGNED)
    lse += (batch * A + head) * N
    delta += (batch * A + head) * N
    for_key = tl.zeros((KEYS, WIDTH), tl.float32)
    for_value = tl.zeros((KEYS, WIDTH), tl.float32)
    for start in range(0, N, QUERIES):
        asked = tile(q, rows, columns, q_row, N - start, E, EVEN_QUERIES)
        upper = tile(grad, rows, columns, grad_row, N - start, E, EVEN_QUERIES)
        # A row that is not there has no share: its probabilities are 0.
        normal = loaded(lse + start + rows, start + rows < N, float("inf"), EVEN_QUERIES)
        dot = loaded(delta + start + rows, start + rows < N, 0.0, EVEN_QUERIES)
        scores = tl.dot(key, tl.trans(asked), input_precision="ieee") * (SCALE * 1.4426950408889634)
        if bias is not None or not EVEN_KEYS:
            scores += added[:, None]
        seen = tl.math.exp2(scores - normal[None, :])
        for_value = tl.dot(seen.to(upper.dtype), upper, for_value, input_precision="ieee")
        slope = seen * (tl.dot(value, tl.trans(upper), input_precision="ieee") - dot[None, :])
        for_key = tl.dot(slope.to(asked.dtype), asked, for_key, input_precision="ieee")
        q += QUERIES * q_row
        grad += QUERIES * grad_row
    put(dv, for_value, inside, keys, columns, batch, head, skip, dv_batch, dv_head, dv_row, E, ALIGNED)
    put(dk, for_key * SCALE, inside, keys, columns, batch, head, skip, dk_batch, dk_head, dk_row, E, ALIGNED)
