"""The kernels of RMS norm: everything in float32 between load and store."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rms_norm_forward(x, weight, out, rstd, x_stride, D, eps, BLOCK: tl.constexpr):
    """One program: a row x [R, D] -> out [R, D] and rstd [R], what it was divided by to the power of -1.

    BLOCK is no less than D; the last dimension has stride 1, and what is written has no gaps.
    """
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < D
    wide = tl.load(x + row * x_stride + at, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    steep = tl.math.rsqrt(tl.sum(wide * wide, axis=0) / D + eps)
    tl.store(rstd + row, steep)
    tl.store(out + row * D + at, (wide * steep * scale).to(out.dtype.element_ty), mask=inside)


@triton.jit
def rms_norm_backward(grad, x, weight, rstd, out, parts, x_stride, R, D, PER, BLOCK: tl.constexpr):
    """One program: PER rows of the gradient of the norm, grad [R, D] -> out [R, D], and what they give the weight.

    The gradient of the weight is the sum of parts [R / PER rounded up, D] over the first dimension.
    """
    part = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < D
    scale = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    to_weight = tl.zeros((BLOCK,), tl.float32)
    for row in range(part * PER, tl.minimum(part * PER + PER, R)):
        upper = tl.load(grad + row * D + at, mask=inside, other=0.0).to(tl.float32)
        wide = tl.load(x + row * x_stride + at, mask=inside, other=0.0).to(tl.float32)
        steep = tl.load(rstd + row)
        normal = wide * steep
        to_weight += upper * normal
        scaled = upper * scale
        slope = tl.sum(scaled * normal, axis=0) / D
        tl.store(out + row * D + at, ((scaled - normal * slope) * steep).to(out.dtype.element_ty), mask=inside)
    tl.store(parts + part * D + at, to_weight, mask=inside)
