"""The kernels of group norm and SiLU: everything in float32 between load and store.

All see a picture [B, C, P] as tiles of channels by pixels, of which either lie side by side. Where a group fits a
program, `group_norm_whole` does all. Elsewhere `group_norm_sums` gives mean and squares of each channel in each part of
the pixels, `group_norm_combine` those of the groups, and `group_norm_apply` the result. Nothing is squared before the
mean, or a pixel of the same part, is taken away, so the variance is right however large the mean is.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile(C, P, CHANNELS: tl.constexpr, PIXELS: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Return channel block and part of the pixels of this program: neighbours in memory are neighbours in the grid."""
    at = tl.program_id(0)
    if CHANNELS_LAST:
        blocks = tl.cdiv(C, CHANNELS)
        return at % blocks, at // blocks
    else:
        parts = tl.cdiv(P, PIXELS)
        return at // parts, at % parts


@triton.jit
def sigmoid(z, EXACT: tl.constexpr):
    """Return 1 / (1 + exp(-z)); unless EXACT without a division, to 22 bits, which takes half the instructions."""
    if EXACT:
        return tl.sigmoid(z)
    else:
        root = tl.math.rsqrt(1.0 + tl.exp2(z * -1.4426950408889634))
        return root * root


@triton.jit
def activated(z, SILU: tl.constexpr, EXACT: tl.constexpr):
    """Return z times its sigmoid, or z."""
    return z * sigmoid(z, EXACT) if SILU else z


@triton.jit
def group_norm_whole(
    x, weight, bias, out, mean, rstd,
    x_batch, x_channel, x_pixel, out_batch, out_channel, out_pixel,
    P, groups, eps, D: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """One program: a group of a picture, D channels of P pixels, held in registers."""
    at = tl.program_id(0)
    n, first = (at // groups).to(tl.int64), (at % groups) * D
    c, p = tl.arange(0, CHANNELS)[:, None], tl.arange(0, PIXELS)[None, :]
    inside = (c < D) & (p < P)
    start = x + n * x_batch + first.to(tl.int64) * x_channel
    data = tl.load(start + c * x_channel + p * x_pixel, mask=inside, other=0.0).to(tl.float32)
    centre = tl.sum(data) / (D * P)
    data = tl.where(inside, data - centre, 0.0)
    scale = 1.0 / tl.sqrt_rn(tl.sum(data * data) / (D * P) + eps)
    gain = tl.load(weight + first + c, mask=c < D, other=0.0).to(tl.float32)
    lift = tl.load(bias + first + c, mask=c < D, other=0.0).to(tl.float32)
    made = activated(data * (scale * gain) + lift, SILU, x.dtype.element_ty == tl.float32)
    start = out + n * out_batch + first.to(tl.int64) * out_channel
    tl.store(start + c * out_channel + p * out_pixel, made.to(out.dtype.element_ty), mask=inside)
    tl.store(mean + at, centre)
    tl.store(rstd + at, scale)


@triton.jit
def group_norm_sums(
    x, means, squares, x_batch, x_channel, x_pixel, C, P,
    CHANNELS: tl.constexpr, PIXELS: tl.constexpr, STEPS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """One program: the mean and the squared deviations from it of a part's channels, into [B, parts, C] each."""
    block, part = tile(C, P, CHANNELS, PIXELS * STEPS, CHANNELS_LAST)
    n = tl.program_id(1).to(tl.int64)
    c, p = tl.arange(0, CHANNELS)[:, None], tl.arange(0, PIXELS)[None, :]
    known, left = c < C - block * CHANNELS, P - part * (PIXELS * STEPS)
    lead, skip = (block * CHANNELS).to(tl.int64), (part * (PIXELS * STEPS)).to(tl.int64)
    start = x + n * x_batch + lead * x_channel + skip * x_pixel + c * x_channel
    near = tl.load(start, mask=known, other=0.0).to(tl.float32)
    total = tl.zeros((CHANNELS, PIXELS), tl.float32)
    square = tl.zeros((CHANNELS, PIXELS), tl.float32)
    for step in tl.static_range(STEPS):
        inside = known & (p < left - step * PIXELS)
        data = tl.load(start + (p + step * PIXELS) * x_pixel, mask=inside, other=0.0).to(tl.float32)
        away = tl.where(inside, data - near, 0.0)
        total += away
        square += away * away
    size = tl.minimum(left, PIXELS * STEPS)
    away = tl.sum(total, axis=1)[:, None]
    into = (n * tl.cdiv(P, PIXELS * STEPS) + part) * C + lead
    tl.store(means + into + c, near + away / size, mask=known)
    tl.store(squares + into + c, tl.maximum(tl.sum(square, axis=1)[:, None] - away * away / size, 0.0), mask=known)


@triton.jit
def group_norm_combine(
    means, squares, weight, mean, rstd, centres, scales, C, P, D, groups, eps, SPAN: tl.constexpr, BLOCK: tl.constexpr
):
    """One program: mean and 1 / deviation of a group of D channels from those of its tiles; also, for each channel
    [B, C], what is taken away and what is multiplied with.
    """
    at = tl.program_id(0)
    n, first = (at // groups).to(tl.int64), (at % groups) * D
    parts = tl.cdiv(P, SPAN)
    start = n * parts * C + first
    near = tl.load(means + start)  # sums of what lies near zero are exact enough
    total = tl.zeros((BLOCK,), tl.float32)
    for begin in range(0, parts * D, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        inside = i < parts * D
        away = tl.load(means + start + (i // D) * C + i % D, mask=inside, other=0.0) - near
        total += tl.where(inside, away * tl.minimum(P - (i // D) * SPAN, SPAN), 0.0)
    size = (D * 1.0) * P
    centre = near + tl.sum(total) / size
    total = tl.zeros((BLOCK,), tl.float32)
    for begin in range(0, parts * D, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        inside = i < parts * D
        from_tile = start + (i // D) * C + i % D
        away = tl.load(means + from_tile, mask=inside, other=0.0) - centre
        square = tl.load(squares + from_tile, mask=inside, other=0.0)
        total += tl.where(inside, square + away * away * tl.minimum(P - (i // D) * SPAN, SPAN), 0.0)
    scale = 1.0 / tl.sqrt_rn(tl.sum(total) / size + eps)
    tl.store(mean + at, centre)
    tl.store(rstd + at, scale)
    into = n * C + first
    for begin in range(0, D, BLOCK // 8):
        c = begin + tl.arange(0, BLOCK // 8)
        gain = tl.load(weight + first + c, mask=c < D, other=0.0).to(tl.float32)
        tl.store(centres + into + c, tl.zeros((BLOCK // 8,), tl.float32) + centre, mask=c < D)
        tl.store(scales + into + c, scale * gain, mask=c < D)


@triton.jit
def group_norm_apply(
    x, centres, scales, bias, out,
    x_batch, x_channel, x_pixel, out_batch, out_channel, out_pixel, C, P,
    CHANNELS: tl.constexpr, PIXELS: tl.constexpr, CHANNELS_LAST: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """One program: a tile of the result."""
    block, part = tile(C, P, CHANNELS, PIXELS, CHANNELS_LAST)
    n = tl.program_id(1).to(tl.int64)
    c, p = tl.arange(0, CHANNELS)[:, None], tl.arange(0, PIXELS)[None, :]
    known = c < C - block * CHANNELS
    inside = known & (p < P - part * PIXELS)
    lead, skip = (block * CHANNELS).to(tl.int64), (part * PIXELS).to(tl.int64)
    centre = tl.load(centres + n * C + lead + c, mask=known, other=0.0)
    scale = tl.load(scales + n * C + lead + c, mask=known, other=0.0)
    lift = tl.load(bias + lead + c, mask=known, other=0.0).to(tl.float32)
    start = x + n * x_batch + lead * x_channel + skip * x_pixel
    data = tl.load(start + c * x_channel + p * x_pixel, mask=inside, other=0.0).to(tl.float32)
    made = activated((data - centre) * scale + lift, SILU, x.dtype.element_ty == tl.float32)
    start = out + n * out_batch + lead * out_channel + skip * out_pixel
    tl.store(start + c * out_channel + p * out_pixel, made.to(out.dtype.element_ty), mask=inside)
