"""Attention as an operator of torch, with kernels in Triton."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kolors_ops.attention.backward import KERNELS_BACKWARD, backward_samples, padded, plan_backward, scratch
from kolors_ops.attention.reference import attend, check_additive, differing_dtypes, gradients
from kolors_ops.operators import (
    MOST_BLOCKS,
    Launch,
    Pick,
    Sample,
    differentiable,
    differentiable_once,
    lacks,
    launch,
    opened,
    operator,
    unsupported,
)
from kolors_ops.table import Row

KERNELS = ("attention_forward", *KERNELS_BACKWARD)
VECTOR = 8
"""Elements that are loaded at once where all strides are multiples of it: 128 bits of a half precision."""
LONGEST_BLOCK = 8192
"""More rows than any block of a table has."""
SHAPES = (
    # queries, keys, heads, width of a head, bias
    (4096, 4096, 10, 64, False),
    (1024, 1024, 20, 64, False),
    (3952, 3952, 10, 64, False),
    (4096, 256, 10, 64, True),
    (1024, 77, 20, 64, False),
    (1024, 77, 20, 64, True),
    (4096, 4096, 8, 40, False),
    (1024, 1024, 8, 80, False),
    (1024, 77, 8, 80, True),
    (1024, 1024, 8, 128, False),
)
"""Of the SDXL U-Net for pictures of 1024 x 1024 and 832 x 1216, and the other widths of a head that are in use."""


class TritonAttention:
    """Attention in one kernel, its gradients in two; `table` is the file with the launches ("": that which ships).

    The mask is none or adds to keys alone. In the table, a width is that of a head.
    """

    def __init__(self, table: str = "") -> None:
        self.table = opened(table)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend: q [B, A, N, E], k and v [B, A, L, E], additive mask that broadcasts to [B, 1, 1, L] -> [B, A, N, E].

        Raises ValueError for a boolean mask and for a call it refuses.
        """
        check_additive(mask)
        if reason := self.refuses(q, k, v, mask):
            raise ValueError(f"attention 'triton' refuses: {reason}")
        made: Tensor = attention(q, k, v, _of_keys(mask, q, k), self.table)[0]
        return made

    def refuses(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> str | None:
        """Say why this call cannot run here (device, dtype, shapes, strides, mask), or return None."""
        reason = unsupported(q) or differing_dtypes(q, k, v) or _unfit_shapes(q, k, v) or _unfit_mask(mask, q, k)
        if reason:
            return reason
        for name, x in (("q", q), ("k", k), ("v", v)):
            if x.stride(-1) != 1 and x.shape[-1] > 1:
                return f"the elements of a head of {name} are not side by side: its strides are {x.stride()}"
        return lacks(self.table, KERNELS, q, q.shape[-1])


def plan_forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, out: Tensor, lse: Tensor, pick: Pick
) -> list[Launch]:
    """Plan out [B, A, N, E] and lse [B, A, N], log2 of the sum of 2 to the power of the scores times log2(e).

    q [B, A, N, E], k and v [B, A, L, E]: any strides, the last 1. bias: None or added to the scores, [B or 1, 1, 1, L].
    """
    from kolors_ops.attention.kernel import attention_forward

    batch, heads, rows, width = q.shape
    keys = k.shape[2]
    tensors = {"q": q, "k": k, "v": v, "out": out}
    steps = {name: _steps(x) for name, x in tensors.items()}
    unit = VECTOR if all(step % VECTOR == 0 for of in steps.values() for step in of) else 1
    # Whether offsets within a head take more than 32 bits, those of a block that goes on behind its end too.
    far = (max(rows, keys) + LONGEST_BLOCK) * max(of[2] for of in steps.values()) >= 2**31
    row = _row(pick, q, k, bias, far)
    block = row.blocks["QUERIES"]
    if bias is not None:
        bias = bias.expand(batch, 1, 1, keys)
    arguments = {
        **tensors,
        **{f"{name}_{of}": step // unit for name in tensors for of, step in zip(_STEPS, steps[name], strict=True)},
        **{"bias": bias, "bias_batch": 0 if bias is None else bias.stride(0)},
        **{"bias_key": 0 if bias is None else bias.stride(3), "lse": lse, "A": heads, "N": rows, "L": keys},
        **{"UNIT": unit, "FAR": far},
        **{"SCALE": 1 / math.sqrt(width), "E": width, "WIDTH": padded(width)},
        **{"EVEN_QUERIES": rows % block == 0, "EVEN_KEYS": keys % row.blocks["KEYS"] == 0},
    }
    return [Launch(attention_forward, (-(-rows // block), heads, batch), arguments, row)]


def samples(dtype: torch.dtype) -> Iterator[Sample]:
    """Yield forward and backward at the shapes of models, in a batch of two; q, k and v are views of one tensor."""
    for rows, keys, heads, width, biased in SHAPES:
        packed = torch.empty(2, keys, 3, heads, width, dtype=dtype, device="meta").transpose(1, 3)
        made = _empty(torch.empty(2, heads, rows, width, dtype=dtype, device="meta"))
        q = packed[:, :, 0] if rows == keys else made
        bias = torch.empty(2, 1, 1, keys, dtype=torch.float32, device="meta") if biased else None
        planned = partial(plan_forward, q, packed[:, :, 1], packed[:, :, 2], bias, made, _empty_sums(q))
        yield Sample(f"{rows}x{keys}, {heads} heads of {width}{', bias' * biased}", planned)
    yield from backward_samples(dtype)


def _row(pick: Pick, q: Tensor, k: Tensor, bias: Tensor | None, far: bool) -> Row:
    """Return the row for whole blocks without a bias where there is one and these are such, else that for any call."""
    rows, width = q.shape[2:]
    if bias is None and not far and width == padded(width):
        with suppress(ValueError):
            row = pick(KERNELS[0], q, width, "even")
            if rows % row.blocks["QUERIES"] == 0 and k.shape[2] % row.blocks["KEYS"] == 0:
                return row
    return pick(KERNELS[0], q, width)


_STEPS = ("batch", "head", "row")


def _steps(x: Tensor) -> list[int]:
    """Return the strides of x [B, A, rows, E] but the last; along a dimension of one there are no steps."""
    return [step if size > 1 else 0 for size, step in zip(x.shape[:3], x.stride()[:3], strict=True)]


def _unfit_shapes(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    if q.ndim != 4 or k.shape != v.shape or (*k.shape[:2], *k.shape[3:]) != (*q.shape[:2], *q.shape[3:]):
        return f"q [B, A, N, E] and k and v [B, A, L, E] do not go with {q.shape}, {k.shape} and {v.shape}"
    if not q.numel() or not k.numel():
        return "there is nothing to attend"
    if max(q.shape[:2]) > MOST_BLOCKS:
        return f"a grid has no room for more than {MOST_BLOCKS} pictures or heads: q is {q.shape}"
    if q.device != k.device or q.device != v.device:
        return f"q, k and v are on {q.device}, {k.device} and {v.device}"
    return None


def _unfit_mask(mask: Tensor | None, q: Tensor, k: Tensor) -> str | None:
    if mask is None:
        return None
    if _of_keys(mask, q, k) is None:
        return f"a mask must add to keys alone, as [{q.shape[0]} or 1, 1, 1, {k.shape[2]}]; it is {list(mask.shape)}"
    if mask.device != q.device:
        return f"the mask is on {mask.device}, and q on {q.device}"
    return "it gives a mask no gradient" if torch.is_grad_enabled() and mask.requires_grad else None


def _of_keys(mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """Return a mask that is the same for all rows and heads as a view [B or 1, 1, 1, L], or None for any other."""
    if mask is None or mask.ndim > 4:
        return None
    mask = mask.view(*(1,) * (4 - mask.ndim), *mask.shape)
    batch, keys = q.shape[0], k.shape[2]
    fits = mask.shape[0] in (1, batch) and mask.shape[1:3] == (1, 1) and mask.shape[3] in (1, keys)
    return mask.expand(-1, -1, -1, keys) if fits else None


def _empty(x: Tensor) -> Tensor:
    """Return a tensor like x [B, A, N, E] whose heads lie side by side, as the projection behind it reads them."""
    batch, heads, rows, width = x.shape
    return x.new_empty(batch, rows, heads, width).transpose(1, 2)


def _empty_sums(q: Tensor) -> Tensor:
    """Return room for a number for each row of q [B, A, N, E], in float32 at least."""
    return q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))


def _fake(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, table: str) -> tuple[Tensor, Tensor]:
    return _empty(q), _empty_sums(q)


def _reference(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, table: str) -> tuple[Tensor, Tensor]:
    found, sums = attend(q, k, v, bias)
    return _empty(q).copy_(found), sums


def _forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, table: str) -> tuple[Tensor, Tensor]:
    out, lse = _empty(q), _empty_sums(q)
    launch(lambda pick: plan_forward(q, k, v, bias, out, lse, pick), q, table)
    return out, lse


def _fake_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return _empty(q), _empty(k), _empty(v)


def _reference_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, out: Tensor, lse: Tensor, table: str
) -> tuple[Tensor, ...]:
    found = gradients(grad, q, k, v, bias, out, lse)
    return tuple(_empty(x).copy_(each) for x, each in zip((q, k, v), found, strict=True))


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, out: Tensor, lse: Tensor, table: str
) -> tuple[Tensor, ...]:
    upper = grad if grad.stride(-1) == 1 else grad.contiguous()  # a sum's gradient is one number, expanded
    made = (_empty(q), _empty(k), _empty(v))
    delta = scratch(q)
    launch(lambda pick: plan_backward(upper, q, k, v, bias, out, lse, delta, *made, pick), q, table)
    return made


attention = operator(
    "attention(Tensor q, Tensor k, Tensor v, Tensor? bias, str table) -> (Tensor, Tensor)",
    fake=_fake,
    reference=_reference,
    kernels=_forward,
)
attention_backward = operator(
    "attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor? bias, Tensor out, Tensor lse, str table)"
    " -> (Tensor, Tensor, Tensor)",
    fake=_fake_backward,
    reference=_reference_backward,
    kernels=_backward,
)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, bias, ctx.table = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, bias, out, lse)


def _go_back(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 5
    return *attention_backward(grad, *ctx.saved_tensors, ctx.table), None, None


differentiable(attention, keep=_keep, backward=_go_back)
differentiable_once(attention_backward)
