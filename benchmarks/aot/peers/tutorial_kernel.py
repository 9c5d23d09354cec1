"""Flash attention in the manner of Triton's tutorial on it, written anew: its algorithm, its blocks, its backward.

As there, heads lie one after another [B * A, N, E], rows and keys are multiples of the blocks, and nothing is masked.
The backward is one kernel in which a program first makes the gradients of a block of keys, then that of a block of
queries. Pointers take the place of descriptors, and of keys there may be other than of queries.
"""

# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tutorial_forward(
    q, k, v, sm_scale, lse, out, N, L,
    E: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M rows of a head."""
    block, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    rows, keys, e = block * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, E)
    asked = tl.load(q + head * N * E + rows[:, None] * E + e[None, :])
    k += head * L * E
    v += head * L * E
    top = tl.zeros((BLOCK_M,), tl.float32) - float("inf")
    total = tl.zeros((BLOCK_M,), tl.float32) + 1.0
    summed = tl.zeros((BLOCK_M, E), tl.float32)
    scale = sm_scale * 1.44269504
    for start in range(0, L, BLOCK_N):
        scores = tl.dot(asked, tl.load(k + (start + keys)[None, :] * E + e[:, None]))
        now = tl.maximum(top, tl.max(scores, 1) * scale)
        weights = tl.math.exp2(scores * scale - now[:, None])
        kept = tl.math.exp2(top - now)
        total = total * kept + tl.sum(weights, 1)
        values = tl.load(v + (start + keys)[:, None] * E + e[None, :])
        summed = tl.dot(weights.to(values.dtype), values, summed * kept[:, None])
        top = now
    tl.store(lse + head * N + rows, top + tl.math.log2(total))
    tl.store(out + head * N * E + rows[:, None] * E + e[None, :], (summed / total[:, None]).to(out.dtype.element_ty))


@triton.jit
def tutorial_delta(out, grad, delta, N, E: tl.constexpr, BLOCK_M: tl.constexpr):
    """One program: the sums of out * grad of BLOCK_M rows."""
    rows, head, e = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M), tl.program_id(1).to(tl.int64), tl.arange(0, E)
    place = head * N * E + rows[:, None] * E + e[None, :]
    product = tl.load(out + place).to(tl.float32) * tl.load(grad + place).to(tl.float32)
    tl.store(delta + head * N + rows, tl.sum(product, axis=1))


@triton.jit
def tutorial_backward(
    q, k, v, sm_scale, grad, dq, dk, dv, lse, delta, N,
    E: tl.constexpr, BLOCK_M1: tl.constexpr, BLOCK_N1: tl.constexpr, BLOCK_M2: tl.constexpr, BLOCK_N2: tl.constexpr,
):  # fmt: skip
    """One program: the gradients of BLOCK_N1 keys, then of as many queries; k is scaled beforehand."""
    block, head, e = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.arange(0, E)
    q += head * N * E
    k += head * N * E
    v += head * N * E
    grad += head * N * E
    lse += head * N
    delta += head * N
    keys = block * BLOCK_N1 + tl.arange(0, BLOCK_N1)
    here = keys[:, None] * E + e[None, :]
    key, value = tl.load(k + here), tl.load(v + here)
    into_value, into_key = tl.zeros((BLOCK_N1, E), tl.float32), tl.zeros((BLOCK_N1, E), tl.float32)
    for start in range(0, N, BLOCK_M1):
        rows = start + tl.arange(0, BLOCK_M1)
        asked = tl.load(q + rows[None, :] * E + e[:, None])
        weights = tl.math.exp2(tl.dot(key, asked) - tl.load(lse + rows)[None, :])
        upper = tl.load(grad + rows[:, None] * E + e[None, :])
        into_value += tl.dot(weights.to(upper.dtype), upper)
        slope = weights * (tl.dot(value, tl.trans(upper)).to(tl.float32) - tl.load(delta + rows)[None, :])
        into_key += tl.dot(slope.to(asked.dtype), tl.trans(asked))
    tl.store(dv + head * N * E + here, into_value.to(dv.dtype.element_ty))
    tl.store(dk + head * N * E + here, (into_key * sm_scale).to(dk.dtype.element_ty))
    asking = block * BLOCK_M2 + tl.arange(0, BLOCK_M2)
    place_of_query = asking[:, None] * E + e[None, :]
    query, slopes = tl.load(q + place_of_query), tl.load(grad + place_of_query)
    top, level = tl.load(lse + asking)[:, None], tl.load(delta + asking)[:, None]
    into_query = tl.zeros((BLOCK_M2, E), tl.float32)
    for start in range(0, N, BLOCK_N2):
        others = start + tl.arange(0, BLOCK_N2)
        their_key = tl.load(k + others[None, :] * E + e[:, None])
        their_value = tl.load(v + others[None, :] * E + e[:, None])
        shares = tl.math.exp2(tl.dot(query, their_key) - top)
        inner = shares * (tl.dot(slopes, their_value).to(tl.float32) - level)
        into_query += tl.dot(inner.to(their_key.dtype), tl.trans(their_key))
    tl.store(dq + head * N * E + place_of_query, (into_query * 0.6931471824645996).to(dq.dtype.element_ty))
