"""The kernel of a linear layer of integers: they are widened between load and product, which is summed in float32.

An integer becomes a half-precision number without a conversion, which is slow: its bits are put into the fraction of
a power of two whose last place is worth 1, and that power is subtracted again.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def whole_bytes(stored, dtype: tl.constexpr):
    """int8 -> the same integers in dtype."""
    if dtype == tl.float16:
        made = ((stored.to(tl.int16) & 0xFF) ^ 0x6480).to(tl.float16, bitcast=True) - 1152.0  # 1024 + 128
    else:
        made = stored.to(dtype)
    return made


@triton.jit
def half_bytes(stored, dtype: tl.constexpr):
    """int8 [R, C] -> [R, 2 C] in dtype: of each byte the signed high half, then the low one."""
    bits = stored.to(tl.int16)
    bits = tl.reshape(tl.join(bits >> 4, bits), (stored.shape[0], 2 * stored.shape[1])) & 15
    if dtype == tl.float16:
        made = (bits ^ 0x6408).to(tl.float16, bitcast=True) - 1032.0  # 1024 + 8
    elif dtype == tl.bfloat16:
        made = (bits ^ 0x4308).to(tl.bfloat16, bitcast=True) - 136.0  # 128 + 8
    else:
        made = ((bits ^ 8) - 8).to(dtype)
    return made


@triton.jit
def store_rows(total, out, row, column, R, HEIGHT):
    """Store a block [BR, BO] of out [R, HEIGHT] that begins at a row and a column.

    Eight columns have a dimension of their own: with two dimensions, AMD's compiler stores four at a time.
    """
    BLOCK_R: tl.constexpr = total.shape[0]
    EIGHTS: tl.constexpr = total.shape[1] // 8
    made = tl.reshape(total.to(out.dtype.element_ty), (BLOCK_R, EIGHTS, 8))
    rows = (row + tl.arange(0, BLOCK_R))[:, None, None]
    columns = (column + 8 * tl.arange(0, EIGHTS)[:, None] + tl.arange(0, 8)[None, :])[None, :, :]
    tl.store(out + rows.to(tl.int64) * HEIGHT + columns, made, mask=(rows < R) & (columns < HEIGHT))


@triton.jit
def quantized_linear_forward(
    x,
    weight,
    scale,
    bias,
    out,
    R,
    WIDTH,
    HEIGHT,
    x_stride,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """One program: a block of x [R, WIDTH] -> out [R, HEIGHT]; GROUP columns share a scale, or 0: a whole row does.

    BLOCK_I divides WIDTH and GROUP. The scale of a row waits for the sum, so that what is multiplied are integers,
    exact in every dtype; those of groups are multiplied into the weight, in the dtype of x.
    """
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    some_rows, some_columns = rows < R, columns < HEIGHT
    BYTES: tl.constexpr = BLOCK_I * BITS // 8
    x_at = x + rows.to(tl.int64)[:, None] * x_stride + tl.arange(0, BLOCK_I)[None, :]
    weight_at = weight + columns.to(tl.int64)[:, None] * (WIDTH // BLOCK_I * BYTES) + tl.arange(0, BYTES)[None, :]
    scale_at = scale + columns * (WIDTH // GROUP if GROUP else 1)
    total = tl.zeros((BLOCK_R, BLOCK_O), tl.float32)
    scales = tl.load(scale_at, mask=some_columns, other=0.0).to(tl.float32)
    for start in range(0, WIDTH, BLOCK_I):
        part = tl.load(x_at, mask=some_rows[:, None], other=0.0)
        stored = tl.load(weight_at, mask=some_columns[:, None], other=0)
        wide = half_bytes(stored, part.dtype) if BITS == 4 else whole_bytes(stored, part.dtype)
        if GROUP:
            wide *= scales.to(part.dtype)[:, None]
            after = (start + BLOCK_I) % WIDTH // GROUP  # loaded a block ahead of its use; at the end in vain
            scales = tl.load(scale_at + after, mask=some_columns, other=0.0).to(tl.float32)
        total = tl.dot(part, tl.trans(wide), total, input_precision="ieee")
        x_at, weight_at = x_at + BLOCK_I, weight_at + BYTES
    if not GROUP:
        total *= scales[None, :]
    if bias is not None:
        total += tl.load(bias + columns, mask=some_columns, other=0.0).to(tl.float32)[None, :]
    store_rows(total, out, tl.program_id(0) * BLOCK_R, tl.program_id(1) * BLOCK_O, R, HEIGHT)
