"""The gradients of attention by their kernels, from a result and a log-sum-exp that are right but for rounding."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import kolors_ops.attention.backward as backward
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kolors_ops.operators import pick_from
from kolors_ops.table import INTERPRETED_AS, read_rows
from torch import Tensor
from torch.nn import functional as F

Check = Callable[..., None]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
TABLE = Path(backward.__file__).with_name("launches_backward.json")
SHAPES = [
    # pictures, heads, queries, keys, width of a head
    (1, 1, 64, 64, 64),
    (2, 1, 33, 77, 64),
    (1, 2, 130, 20, 40),
    (1, 1, 40, 65, 80),
    (1, 1, 1, 64, 128),
    (1, 1, 70, 1, 16),
]


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """The result and the log-sum-exp in base 2, in the dtype of q."""
    scores = q @ k.mT * (math.log2(math.e) / math.sqrt(q.shape[-1]))
    if bias is not None:
        scores = scores + bias.to(q.dtype) * math.log2(math.e)
    top = scores.amax(dim=-1, keepdim=True)
    shares = (scores - top).exp2()
    total = shares.sum(dim=-1, keepdim=True)
    return shares / total @ v, (top + total.log2()).squeeze(-1)


def kernels(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, grad: Tensor) -> list[Tensor]:
    """The gradients of q, k and v by the planned launches; grad and the result lie in memory as [B, N, A, E]."""
    out = torch.empty_like(grad).copy_(attend(q.double(), k.double(), v.double(), bias)[0])
    lse = attend(q.float(), k.float(), v.float(), bias)[1]
    made = [torch.empty_like(x) for x in (q, k, v)]
    delta = backward.scratch(q)
    pick = pick_from(str(TABLE), INTERPRETED_AS)
    for launch in backward.plan_backward(grad, q, k, v, bias, out, lse, delta, *made, pick):
        launch.kernel[launch.grid](**launch.options())
    return made


def exactly(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, grad: Tensor) -> list[Tensor]:
    leaves = [x.detach().double().requires_grad_() for x in (q, k, v)]
    return list(torch.autograd.grad(attend(*leaves, bias)[0], leaves, grad.double()))


def torchs(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, grad: Tensor) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    mask = None if bias is None else bias.to(q.dtype)
    return list(torch.autograd.grad(F.scaled_dot_product_attention(*leaves, attn_mask=mask), leaves, grad))


def drawn(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v and the gradient of the result [B, A, N or L, E], as layers give them: [B, N or L, A, E] in memory."""
    batch, heads, rows, keys, width = shape
    draw = torch.Generator().manual_seed(seed)
    sizes = (rows, keys, keys, rows)
    q, k, v, grad = (torch.randn(batch, n, heads, width, generator=draw).to(dtype).transpose(1, 2) for n in sizes)
    return q, k, v, grad


def steps_of_bias(batch: int, keys: int, hidden: int) -> Tensor:
    """A bias [B, 1, 1, L] that all dtypes hold exactly, and that hides the last keys."""
    bias = (torch.arange(batch * keys).view(batch, 1, 1, keys) % 9 - 4) / 4
    bias[..., keys - hidden :] = -math.inf
    return bias


def as_right_as_scores(found: list[Tensor], exact: list[Tensor], scores: Tensor) -> None:
    """Fail where float32 gradients are off by more than some steps of the largest score, which is an exponent.

    They are those of normal numbers, thus about 1, or 0 where one key is seen. Where scores are large, or tensors so
    small that torch is right by luck, twice its distance is no measure.
    """
    step = torch.finfo(torch.float32).eps * (8 + float(scores.abs().max()))
    for ours, right in zip(found, exact, strict=True):
        assert float((ours - right).abs().max()) <= 8 * step * max(1.0, float(right.abs().max()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("hidden", [None, 0, 13])
@pytest.mark.parametrize("shape", SHAPES)
def test_as_right_as_torch(
    shape: tuple[int, ...], hidden: int | None, dtype: torch.dtype, as_right_as_torch: Check
) -> None:
    q, k, v, grad = drawn(shape, dtype)
    bias = None if hidden is None else steps_of_bias(shape[0], shape[3], min(hidden, shape[3] - 1))
    given = (q, k, v, bias, grad)
    as_right_as_torch(kernels(*given), exactly(*given), torchs(*given))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("mean", "scale"), [(30.0, 1.0), (0.0, 1e3)])
def test_values_far_from_normal(mean: float, scale: float, dtype: torch.dtype, as_right_as_torch: Check) -> None:
    q, k, v, grad = drawn((1, 1, 65, 77, 64))
    given = (*(x.to(dtype) for x in (q, k, v * scale + mean)), None, grad.to(dtype))
    as_right_as_torch(kernels(*given), exactly(*given), torchs(*given))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_large_scores(dtype: torch.dtype, as_right_as_torch: Check) -> None:
    q, k, v, grad = drawn((1, 1, 65, 77, 64))
    given = (*(x.to(dtype) for x in (8 * q, 8 * k, v)), None, grad.to(dtype))
    as_right_as_torch(kernels(*given), exactly(*given), torchs(*given))


def test_large_scores_in_float32() -> None:
    q, k, v, grad = drawn((1, 1, 65, 77, 64))
    given = (8 * q, 8 * k, v, None, grad)
    as_right_as_scores(kernels(*given), exactly(*given), 8 * q @ k.mT)


@given(
    shape=st.tuples(*(st.integers(least, most) for least, most in ((1, 2), (1, 2), (1, 40), (2, 40), (1, 128)))),
    hidden=st.none() | st.integers(0, 39),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shape(shape: tuple[int, ...], hidden: int | None, seed: int) -> None:
    q, k, v, grad = drawn(shape, seed=seed)
    bias = None if hidden is None else steps_of_bias(shape[0], shape[3], min(hidden, shape[3] - 1))
    given = (q, k, v, bias, grad)
    as_right_as_scores(kernels(*given), exactly(*given), q @ k.mT / math.sqrt(shape[-1]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hidden_keys_get_nothing_and_give_nothing(dtype: torch.dtype) -> None:
    q, k, v, grad = drawn((1, 1, 40, 77, 64), dtype)
    bias = torch.zeros(1, 1, 1, 77)
    bias[..., [0, 5, 31, 32, 76]] = -math.inf
    hidden = bias[0, 0, 0].isinf()
    before = kernels(q, k, v, bias, grad)
    for found in before[1:]:
        assert not found[:, :, hidden].any()
        assert found[:, :, ~hidden].any(dim=-1).all()
    k[:, :, hidden], v[:, :, hidden] = 1e4, -1e4
    for one, other in zip(before, kernels(q, k, v, bias, grad), strict=True):
        assert torch.equal(one, other)


def test_padding_of_a_block_has_no_share_where_scores_are_very_negative() -> None:
    q, k, v, grad = drawn((1, 1, 20, 77, 64))
    q, k = q.abs() + 4, -k.abs() - 4  # below -128 in base 2: a key of zeros would outweigh the others without bound
    given = (q, k, v, None, grad)
    assert float(attend(q, k, v, None)[1].max()) < -128
    as_right_as_scores(kernels(*given), exactly(*given), q @ k.mT / 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_views_of_one_product_give_the_same_bits(dtype: torch.dtype) -> None:
    q, k, v, grad = drawn((2, 2, 70, 70, 64), dtype)
    bias = steps_of_bias(1, 70, 3)
    packed = torch.stack([x.transpose(1, 2) for x in (q, k, v)], dim=2).unbind(2)
    views = kernels(*(x.transpose(1, 2) for x in packed), bias.expand(2, 1, 1, 70), grad)
    every_other = torch.stack((bias, bias * torch.nan), dim=-1).flatten(-2)[..., ::2]
    dense = kernels(q.contiguous(), k.contiguous(), v.contiguous(), every_other, grad.contiguous())
    for one, other in zip(views, dense, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("shape", [(2, 2, 50, 77, 64), (1, 2, 70, 33, 40)])
def test_nothing_beside_the_tensors_is_read_or_written(shape: tuple[int, ...], fence: object) -> None:
    q, k, v, grad = drawn(shape)
    q, k, v = (torch.cat((x, x), dim=-1)[..., : x.shape[-1]] for x in (q, k, v))  # rows with poison between them
    bias = steps_of_bias(shape[0], shape[3], 2)
    found = kernels(*(fence.copy(x) for x in (q, k, v, bias, grad)))
    assert not any(x.isnan().any() for x in found)


def test_programs_may_run_in_any_order(in_orders: Check) -> None:
    q, k, v, grad = drawn((2, 2, 70, 77, 64))
    in_orders(lambda: kernels(q, k, v, None, grad))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_row_is_for_a_sample_and_every_sample_has_its_rows(dtype: torch.dtype) -> None:
    bits = torch.finfo(dtype).bits
    rows = [row for row in read_rows(TABLE) if row.bits == bits]
    used = set()
    for family in {row.family for row in rows}:
        for sample in backward.backward_samples(dtype):
            launches = sample.plan(pick_from(str(TABLE), family))
            assert len(launches) == 2
            used |= {launch.row.model_dump_json() for launch in launches}
    assert used == {row.model_dump_json() for row in rows}
