"""The kernels of adding with layer norm: the sum is rounded to its dtype, everything else is float32."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def layer_norm_forward(
    x, added, weight, bias, total, out, mean, rstd, x_stride, added_stride, D, eps,
    ADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: a row x [R, D] -> out [R, D], mean and rstd [R].

    Where ADDED, x + added is normed, and kept as total. BLOCK is no less than D; the last dimension has stride 1, and
    what is written has no gaps.
    """
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < D
    wide = tl.load(x + row * x_stride + at, mask=inside, other=0.0).to(tl.float32)
    if ADDED:
        more = tl.load(added + row * added_stride + at, mask=inside, other=0.0).to(tl.float32)
        rounded = (wide + more).to(total.dtype.element_ty)
        tl.store(total + row * D + at, rounded, mask=inside)
        wide = rounded.to(tl.float32)
    middle = tl.sum(wide, axis=0) / D
    centred = tl.where(inside, wide - middle, 0.0)
    steep = tl.math.rsqrt(tl.sum(centred * centred, axis=0) / D + eps)
    tl.store(mean + row, middle)
    tl.store(rstd + row, steep)
    # Not before the sums, where they would take registers from rows that wait for memory.
    scale = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * D + at, (centred * steep * scale + shift).to(out.dtype.element_ty), mask=inside)


@triton.jit
def layer_norm_backward(
    grad, beside, total, weight, mean, rstd, out, parts, total_stride, R, D, PER,
    BESIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: PER rows of the gradient of the norm, grad [R, D] -> out [R, D], and what they give the parameters.

    total [R, D] is what was normed, and `beside` the gradient that comes to it from elsewhere, where BESIDE. The
    gradients of weight and bias are the sums of parts [2, R / PER rounded up, D] over their middle dimension.
    """
    part = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < D
    scale = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    to_weight = tl.zeros((BLOCK,), tl.float32)
    to_bias = tl.zeros((BLOCK,), tl.float32)
    for row in range(part * PER, tl.minimum(part * PER + PER, R)):
        upper = tl.load(grad + row * D + at, mask=inside, other=0.0).to(tl.float32)
        wide = tl.load(total + row * total_stride + at, mask=inside, other=0.0).to(tl.float32)
        steep = tl.load(rstd + row)
        normal = (wide - tl.load(mean + row)) * steep
        to_weight += upper * normal
        to_bias += upper
        scaled = upper * scale
        level = tl.sum(scaled, axis=0) / D
        slope = tl.sum(scaled * normal, axis=0) / D
        made = (scaled - level - normal * slope) * steep
        if BESIDE:
            made += tl.load(beside + row * D + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + row * D + at, made.to(out.dtype.element_ty), mask=inside)
    tl.store(parts + part * D + at, to_weight, mask=inside)
    tl.store(parts + (tl.num_programs(0) + part) * D + at, to_bias, mask=inside)
