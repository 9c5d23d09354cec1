"""The kernel of attention: one pass over the keys that keeps a maximum so far, so that no score is ever in memory.

Scores are in base 2, times log2(e), since 2 to a power is one instruction; sums are in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def places(x, rows, row, FAR: tl.constexpr, UNIT: tl.constexpr, WIDTH: tl.constexpr):
    """Return where the elements of rows of x lie, [R, WIDTH]; rows are `row` times UNIT apart."""
    if FAR:  # else 32 bits suffice, and save instructions
        rows = rows.to(tl.int64)
    return x + rows[:, None] * row * UNIT + tl.arange(0, WIDTH)[None, :]


@triton.jit
def load_rows(place, inside, E: tl.constexpr, WIDTH: tl.constexpr, EVEN: tl.constexpr):
    """Load [R, WIDTH]; what is in rows not inside, or behind E columns, is 0."""
    columns = tl.arange(0, WIDTH)
    if EVEN and E == WIDTH:
        return tl.load(place)
    if EVEN:
        return tl.load(place, mask=columns[None, :] < E, other=0.0)
    if E == WIDTH:
        return tl.load(place, mask=inside[:, None], other=0.0)
    return tl.load(place, mask=inside[:, None] & (columns[None, :] < E), other=0.0)


@triton.jit
def attend_block(
    asked, k, v, bias, start, top, total, summed, k_row, v_row, bias_key, L,
    FAR: tl.constexpr, UNIT: tl.constexpr, SCALE: tl.constexpr, E: tl.constexpr, WIDTH: tl.constexpr,
    KEYS: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Take in the KEYS keys from `start` on: the new maxima [R], sums of weights [R] and weighted values [R, WIDTH]."""
    keys = start + tl.arange(0, KEYS)
    inside = keys < L
    # What is added to scores is what their sums begin with, which takes no registers of its own.
    if bias is not None:
        if EVEN:
            added = tl.load(bias + keys.to(tl.int64) * bias_key).to(tl.float32)
        else:
            added = tl.load(bias + keys.to(tl.int64) * bias_key, mask=inside, other=float("-inf")).to(tl.float32)
        # The least finite number stays one, so that a row of nothing else has a maximum.
        added = tl.where(added > float("-inf"), tl.maximum(added, -1e36) / SCALE, added)
        scores = tl.zeros((asked.shape[0], KEYS), tl.float32) + added[None, :]
    elif EVEN:
        scores = tl.zeros((asked.shape[0], KEYS), tl.float32)
    else:  # a zero that was loaded would be a score as good as any
        scores = tl.zeros((asked.shape[0], KEYS), tl.float32) + tl.where(inside, 0.0, float("-inf"))[None, :]
    seen = load_rows(places(k, keys, k_row, FAR, UNIT, WIDTH), inside, E, WIDTH, EVEN)
    scores = tl.dot(asked, tl.trans(seen), scores, input_precision="ieee")
    # The scale goes into the difference from the maximum, which then is one instruction.
    now = tl.maximum(top, tl.max(scores, 1) * (SCALE * 1.4426950408889634))
    weights = tl.exp2(scores * (SCALE * 1.4426950408889634) - now[:, None])
    kept = tl.exp2(top - now)
    total = total * kept + tl.sum(weights, 1)
    values = load_rows(places(v, keys, v_row, FAR, UNIT, WIDTH), inside, E, WIDTH, EVEN)
    summed = tl.dot(weights.to(values.dtype), values, summed * kept[:, None], input_precision="ieee")
    return now, total, summed


@triton.jit
def attention_forward(
    q, k, v, bias, out, lse,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, out_batch, out_head, out_row,
    bias_batch, bias_key, A, N, L,
    FAR: tl.constexpr, UNIT: tl.constexpr, SCALE: tl.constexpr, E: tl.constexpr, WIDTH: tl.constexpr,
    EVEN_QUERIES: tl.constexpr, EVEN_KEYS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One program: QUERIES rows of one head, out [B, A, N, E] and log2 of their sums of weights, lse [B, A, N]."""
    first, head, batch = tl.program_id(0) * QUERIES, tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    rows, columns = first + tl.arange(0, QUERIES), tl.arange(0, WIDTH)
    inside = rows < N
    place = places(q + (batch * q_batch + head * q_head) * UNIT, rows, q_row, FAR, UNIT, WIDTH)
    asked = load_rows(place, inside, E, WIDTH, EVEN_QUERIES)
    k += (batch * k_batch + head * k_head) * UNIT
    v += (batch * v_batch + head * v_head) * UNIT
    if bias is not None:
        bias += batch * bias_batch
    top = tl.full((QUERIES,), -3e38, tl.float32)  # finite: a block whose keys are all hidden must leave no NaN
    total = tl.zeros((QUERIES,), tl.float32)
    summed = tl.zeros((QUERIES, WIDTH), tl.float32)
    for start in range(0, L, KEYS):
        top, total, summed = attend_block(
            asked, k, v, bias, start, top, total, summed, k_row, v_row, bias_key, L,
            FAR, UNIT, SCALE, E, WIDTH, KEYS, EVEN_KEYS,
        )  # fmt: skip
    made = (summed / total[:, None]).to(out.dtype.element_ty)
    place = places(out + (batch * out_batch + head * out_head) * UNIT, rows, out_row, FAR, UNIT, WIDTH)
    lse += (batch * A + head) * N + rows
    if EVEN_QUERIES:
        tl.store(lse, top + tl.log2(total))
        tl.store(place, made, mask=(columns < E)[None, :])
    else:
        tl.store(lse, top + tl.log2(total), mask=inside)
        tl.store(place, made, mask=inside[:, None] & (columns < E)[None, :])
