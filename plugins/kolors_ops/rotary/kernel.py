"""The kernel of rotary positions: everything in float32 between load and store."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rotary_turn(
    x, turns, out, x_row, x_head, turns_row, A, E, BACK: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr
):
    """One program: HEADS heads of a row of x [R, A, E] turned, or turned back -> out [R, A, E].

    turns [R, E / 2, 2] are cosines beside sines, float32. BLOCK is no less than E; the last dimension has stride 1.
    """
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    at = tl.arange(0, BLOCK)
    inside = (head < A)[:, None] & (at < E)[None, :]
    # Neighbours are loaded together and parted in registers, so that loads are wide.
    spot = x + row * x_row + (head.to(tl.int64)[:, None] * x_head + at[None, :])
    wide = tl.load(spot, mask=inside, other=0.0).to(tl.float32)
    even, odd = tl.split(tl.reshape(wide, (HEADS, BLOCK // 2, 2)))
    # Each head loads the turns of its row itself: from the cache, where sharing them would cost a barrier.
    turn = tl.load(turns + row * turns_row + (tl.zeros_like(head)[:, None] + at[None, :]), mask=inside, other=0.0)
    cos, sin = tl.split(tl.reshape(turn, (HEADS, BLOCK // 2, 2)))
    if BACK:
        sin = -sin
    turned = tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (HEADS, BLOCK))
    into = out + row * A * E + (head[:, None] * E + at[None, :])
    tl.store(into, turned.to(out.dtype.element_ty), mask=inside)
