"""The kernels of GEGLU: exact (erf) GELU, everything in float32 between load and store."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def loaded(start, at, inside, F):
    """Return values and gates of the row [2F] that begins there."""
    value = tl.load(start + at, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(start + F + at, mask=inside, other=0.0).to(tl.float32)
    return value, gate


@triton.jit
def geglu_forward(x, out, x_stride, out_stride, F, BLOCK: tl.constexpr):
    """One program: a row's next BLOCK values and gates, x [R, 2F] -> out [R, F]; the last dimension has stride 1."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < F
    value, gate = loaded(x + row * x_stride, at, inside, F)
    made = value * (0.5 * gate * (1.0 + tl.math.erf(gate * 0.7071067811865476)))
    tl.store(out + row * out_stride + at, made.to(out.dtype.element_ty), mask=inside)


@triton.jit
def geglu_backward(grad, x, out, grad_stride, x_stride, out_stride, F, BLOCK: tl.constexpr):
    """One program: a row's next BLOCK gradients, grad [R, F] and x [R, 2F] -> out [R, 2F]."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < F
    value, gate = loaded(x + row * x_stride, at, inside, F)
    upper = tl.load(grad + row * grad_stride + at, mask=inside, other=0.0).to(tl.float32)
    below = 0.5 * (1.0 + tl.math.erf(gate * 0.7071067811865476))  # the normal distribution, and its density
    density = 0.3989422804014327 * tl.exp(-0.5 * gate * gate)
    into = out + row * out_stride
    tl.store(into + at, (upper * gate * below).to(out.dtype.element_ty), mask=inside)
    slope = below + gate * density
    tl.store(into + F + at, (upper * value * slope).to(out.dtype.element_ty), mask=inside)
