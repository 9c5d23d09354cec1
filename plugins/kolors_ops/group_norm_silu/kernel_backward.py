"""The kernels of the gradient of group norm and SiLU: everything in float32 between load and store.

With z = weight * normal + bias, d the gradient of z and means over a group, that of x is
rstd * (weight * d - mean(weight * d) - normal * mean(weight * d * normal)). Sums of d and d * normal over the pixels
are kept for each channel and part; the gradients of bias and weight are their sums. No two programs write to one place.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kolors_ops.group_norm_silu.kernel import sigmoid, tile


@triton.jit
def through(upper, z, SILU: tl.constexpr, EXACT: tl.constexpr):
    """Return the gradient of z from that of what `activated` makes of it."""
    if SILU:
        share = sigmoid(z, EXACT)
        upper = upper * (share * (1.0 + z * (1.0 - share)))
    return upper


@triton.jit
def group_norm_whole_backward(
    grad, x, weight, bias, mean, rstd, out, lifts, gains,
    grad_batch, grad_channel, grad_pixel, x_batch, x_channel, x_pixel, out_batch, out_channel, out_pixel,
    P, groups, D: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """One program: a group of a picture; sums over its pixels into `lifts` and `gains`, [B, C] each."""
    at = tl.program_id(0)
    n, first = (at // groups).to(tl.int64), ((at % groups) * D).to(tl.int64)
    c, p = tl.arange(0, CHANNELS)[:, None], tl.arange(0, PIXELS)[None, :]
    inside = (c < D) & (p < P)
    start = x + n * x_batch + first * x_channel
    data = tl.load(start + c * x_channel + p * x_pixel, mask=inside, other=0.0).to(tl.float32)
    start = grad + n * grad_batch + first * grad_channel
    upper = tl.load(start + c * grad_channel + p * grad_pixel, mask=inside, other=0.0).to(tl.float32)
    gain = tl.load(weight + first + c, mask=c < D, other=0.0).to(tl.float32)
    lift = tl.load(bias + first + c, mask=c < D, other=0.0).to(tl.float32)
    scale = tl.load(rstd + at)
    normal = (data - tl.load(mean + at)) * scale
    upper = through(upper, normal * gain + lift, SILU, x.dtype.element_ty == tl.float32)
    lifted, gained = tl.sum(upper, axis=1)[:, None], tl.sum(upper * normal, axis=1)[:, None]
    level, slope = tl.sum(lifted * gain) / (D * P), tl.sum(gained * gain) / (D * P)
    made = scale * (upper * gain - level - normal * slope)
    start = out + n * out_batch + first * out_channel
    tl.store(start + c * out_channel + p * out_pixel, made.to(out.dtype.element_ty), mask=inside)
    into = n * D * groups + first
    tl.store(lifts + into + c, lifted, mask=c < D)
    tl.store(gains + into + c, gained, mask=c < D)


@triton.jit
def group_norm_sums_backward(
    grad, x, weight, bias, mean, rstd, lifts, gains,
    grad_batch, grad_channel, grad_pixel, x_batch, x_channel, x_pixel, C, P, D, groups,
    CHANNELS: tl.constexpr, PIXELS: tl.constexpr, STEPS: tl.constexpr, CHANNELS_LAST: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """One program: over a part's pixels, the sums of d and of d * normal, into [B, parts, C] each."""
    block, part = tile(C, P, CHANNELS, PIXELS * STEPS, CHANNELS_LAST)
    n = tl.program_id(1).to(tl.int64)
    c, p = tl.arange(0, CHANNELS)[:, None], tl.arange(0, PIXELS)[None, :]
    known, left = c < C - block * CHANNELS, P - part * (PIXELS * STEPS)
    lead, skip = (block * CHANNELS).to(tl.int64), (part * (PIXELS * STEPS)).to(tl.int64)
    group = n * groups + (block * CHANNELS + c) // D
    centre = tl.load(mean + group, mask=known, other=0.0)
    rate = tl.load(rstd + group, mask=known, other=0.0)
    scale = rate * tl.load(weight + lead + c, mask=known, other=0.0).to(tl.float32)
    lift = tl.load(bias + lead + c, mask=known, other=0.0).to(tl.float32)
    x += n * x_batch + lead * x_channel + skip * x_pixel
    grad += n * grad_batch + lead * grad_channel + skip * grad_pixel
    lifted = tl.zeros((CHANNELS, PIXELS), tl.float32)
    gained = tl.zeros((CHANNELS, PIXELS), tl.float32)
    for step in range(STEPS):
        i = p + step * PIXELS
        inside = known & (i < left)
        data = tl.load(x + c * x_channel + i * x_pixel, mask=inside, other=0.0).to(tl.float32) - centre
        upper = tl.load(grad + c * grad_channel + i * grad_pixel, mask=inside, other=0.0).to(tl.float32)
        upper = through(upper, data * scale + lift, SILU, x.dtype.element_ty == tl.float32)
        lifted += upper
        gained += upper * data
    into = (n * tl.cdiv(P, PIXELS * STEPS) + part) * C + lead
    tl.store(lifts + into + c, tl.sum(lifted, axis=1)[:, None], mask=known)
    tl.store(gains + into + c, tl.sum(gained, axis=1)[:, None] * rate, mask=known)


@triton.jit
def group_norm_combine_backward(
    lifts, gains, weight, mean, rstd, factors, C, P, D, groups, plane, SPAN: tl.constexpr, BLOCK: tl.constexpr
):
    """One program: what the gradient of a group's x is made of, into factors [4, B, C], each a plane: what is taken
    from x, and what d, one and the rest of x are multiplied with.
    """
    at = tl.program_id(0)
    n, first = (at // groups).to(tl.int64), (at % groups) * D
    parts = tl.cdiv(P, SPAN)
    start = n * parts * C + first
    level, slope = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for begin in range(0, parts * D, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        inside = i < parts * D
        from_tile = start + (i // D) * C + i % D
        gain = tl.load(weight + first + i % D, mask=inside, other=0.0).to(tl.float32)
        level += gain * tl.load(lifts + from_tile, mask=inside, other=0.0)
        slope += gain * tl.load(gains + from_tile, mask=inside, other=0.0)
    centre, scale, size = tl.load(mean + at), tl.load(rstd + at), (D * 1.0) * P
    constant, factor = -scale * (tl.sum(level) / size), -scale * (scale * (tl.sum(slope) / size))
    here = factors + n * C + first
    for begin in range(0, D, BLOCK // 8):
        c = begin + tl.arange(0, BLOCK // 8)
        gain = tl.load(weight + first + c, mask=c < D, other=0.0).to(tl.float32)
        none = tl.zeros((BLOCK // 8,), tl.float32)
        tl.store(here + c, none + centre, mask=c < D)
        tl.store(here + plane + c, scale * gain, mask=c < D)
        tl.store(here + 2 * plane + c, none + constant, mask=c < D)
        tl.store(here + 3 * plane + c, none + factor, mask=c < D)


@triton.jit
def group_norm_apply_backward(
    grad, x, bias, factors, out,
    grad_batch, grad_channel, grad_pixel, x_batch, x_channel, x_pixel, out_batch, out_channel, out_pixel, C, P, plane,
    CHANNELS: tl.constexpr, PIXELS: tl.constexpr, CHANNELS_LAST: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """One program: a tile of the gradient of x."""
    block, part = tile(C, P, CHANNELS, PIXELS, CHANNELS_LAST)
    n = tl.program_id(1).to(tl.int64)
    c, p = tl.arange(0, CHANNELS)[:, None], tl.arange(0, PIXELS)[None, :]
    known = c < C - block * CHANNELS
    inside = known & (p < P - part * PIXELS)
    lead, skip = (block * CHANNELS).to(tl.int64), (part * PIXELS).to(tl.int64)
    here = factors + n * C + lead
    start = x + n * x_batch + lead * x_channel + skip * x_pixel
    data = tl.load(start + c * x_channel + p * x_pixel, mask=inside, other=0.0).to(tl.float32)
    start = grad + n * grad_batch + lead * grad_channel + skip * grad_pixel
    upper = tl.load(start + c * grad_channel + p * grad_pixel, mask=inside, other=0.0).to(tl.float32)
    data -= tl.load(here + c, mask=known, other=0.0)
    scale = tl.load(here + plane + c, mask=known, other=0.0)
    lift = tl.load(bias + lead + c, mask=known, other=0.0).to(tl.float32)
    upper = through(upper, data * scale + lift, SILU, x.dtype.element_ty == tl.float32)
    level = tl.load(here + 2 * plane + c, mask=known, other=0.0)
    slope = tl.load(here + 3 * plane + c, mask=known, other=0.0)
    start = out + n * out_batch + lead * out_channel + skip * out_pixel
    made = upper * scale + (data * slope + level)
    tl.store(start + c * out_channel + p * out_pixel, made.to(out.dtype.element_ty), mask=inside)
