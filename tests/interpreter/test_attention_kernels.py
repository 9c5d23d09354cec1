from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kolors_ops.attention.config import AttentionTriton
from kolors_ops.attention.op import attention, plan_forward
from kolors_ops.attention.reference import ReferenceAttention
from kolors_ops.operators import pick_from
from torch import Tensor
from torch.nn import functional as F

from kolors_kernel import BuildContext

triton = AttentionTriton().build(BuildContext())
Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
Check = Callable[..., None]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)


def torchs(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    if mask is not None:
        mask = mask.to(q.dtype).view(*(1,) * (4 - mask.ndim), *mask.shape)
    return F.scaled_dot_product_attention(q, k, v, mask)


def there_and_back(op: Attend, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, grad: Tensor) -> list[Tensor]:
    """The result of op and the gradients of q, k and v for that of the result."""
    leaves = [t.detach().requires_grad_() for t in (q, k, v)]
    made = op(leaves[0], leaves[1], leaves[2], mask)
    return [made.detach(), *torch.autograd.grad(made, leaves, grad.to(made.dtype))]


def heads(
    batch: int, heads: int, queries: int, keys: int, width: int, *, mean: float = 0.0, scale: float = 1.0, seed: int = 0
) -> list[Tensor]:
    """q, k, v and a gradient, of which the scale is that of the scores and of the values."""
    draw = torch.Generator().manual_seed(seed)
    q, k, v, grad = (torch.randn(batch, heads, n, width, generator=draw) for n in (queries, keys, keys, queries))
    return [(q + mean) * math.sqrt(scale), (k + mean) * math.sqrt(scale), v * scale + mean, grad]


def keys_hidden(batch: int, keys: int, *, seed: int = 0) -> Tensor:
    """A bias of keys [B, 1, 1, L] that hides some, the first of a block among them."""
    bias = 2 * torch.randn(batch, 1, 1, keys, generator=torch.Generator().manual_seed(seed))
    bias[..., 1::3] = -math.inf
    bias[:1, ..., : keys // 2] = -math.inf
    bias[..., -1] = 0.5  # one must stay
    return bias


SHAPES = [
    ((1, 1, 128, 64, 64), False),
    ((2, 1, 130, 77, 64), True),
    ((1, 2, 33, 77, 40), False),
    ((2, 1, 5, 70, 80), True),
]


@DTYPES
@pytest.mark.parametrize(("mean", "scale"), [(0.0, 1.0), (30.0, 1.0), (0.0, 1e3)])
@pytest.mark.parametrize(("shape", "biased"), SHAPES)
def test_as_right_as_torch(
    shape: tuple[int, ...], biased: bool, mean: float, scale: float, dtype: torch.dtype, as_right_as_torch: Check
) -> None:
    q, k, v, _ = (t.to(dtype) for t in heads(*shape, mean=mean, scale=scale))
    bias = keys_hidden(shape[0], shape[3]).to(dtype).float() if biased else None  # torch's own rounds it to q's dtype
    exact = ReferenceAttention()(q.double(), k.double(), v.double(), bias)
    as_right_as_torch([triton(q, k, v, bias)], [exact], [torchs(q, k, v, bias)])


@DTYPES
@pytest.mark.parametrize(("shape", "biased"), SHAPES)
def test_gradients_as_right_as_torchs(
    shape: tuple[int, ...], biased: bool, dtype: torch.dtype, as_right_as_torch: Check
) -> None:
    q, k, v, grad = (t.to(dtype) for t in heads(*shape))
    bias = keys_hidden(shape[0], shape[3]).to(dtype).float() if biased else None
    exact = there_and_back(ReferenceAttention(), q.double(), k.double(), v.double(), bias, grad.double())
    as_right_as_torch(there_and_back(triton, q, k, v, bias, grad), exact, there_and_back(torchs, q, k, v, bias, grad))


@given(
    queries=st.integers(1, 140),
    keys=st.integers(1, 150),
    width=st.sampled_from([8, 16, 24, 32, 40, 64, 72, 80, 128]),
    form=st.sampled_from(["packed", "separate", "wide"]),
    bias=st.sampled_from(["none", "of each", "of all", "of length"]),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_lengths_widths_strides_and_biases(
    queries: int, keys: int, width: int, form: str, bias: str, seed: int
) -> None:
    """As right as scores of float32 are: of so few numbers torch's own may happen to be exact."""
    q, k, v, _ = heads(2, 2, queries, keys, width, seed=seed)
    if form == "packed":  # [B, L, 3, A, E], as one product gives them
        packed = torch.stack([k, k, v], dim=2).transpose(1, 3).contiguous()
        q, k, v = packed.permute(2, 0, 3, 1, 4)
    if form == "wide":  # strides that are no multiples of anything
        q, k, v = (torch.cat((t, t[..., :3]), dim=-1)[..., :width] for t in (q, k, v))
    mask = None if bias == "none" else keys_hidden(2, keys, seed=seed)
    if mask is not None and bias != "of each":
        mask = mask[1:] if bias == "of all" else mask[1, 0, 0]
    exact = ReferenceAttention()(q.double(), k.double(), v.double(), mask)
    scores = float((q @ k.mT).abs().max()) / math.sqrt(width)
    step = torch.finfo(torch.float32).eps * (8 + scores) * float(v.abs().max())
    assert float((triton(q, k, v, mask) - exact).abs().max()) <= 2 * step


def test_a_single_key_gives_its_value_and_no_slope() -> None:
    q, k, v, grad = heads(1, 2, 7, 1, 64)
    out, for_q, for_k, for_v = there_and_back(triton, q, k, v, None, grad)
    assert torch.equal(out, v.expand_as(out))
    torch.testing.assert_close(for_v, grad.sum(dim=2, keepdim=True), rtol=1e-6, atol=1e-6)
    assert max(float(t.abs().max()) for t in (for_q, for_k)) < 1e-5 * float(v.abs().max() * k.abs().max())


@DTYPES
@pytest.mark.parametrize("keys", [77, 256])
def test_a_hidden_key_leaks_nothing(keys: int, dtype: torch.dtype) -> None:
    q, k, v, _ = (t.to(dtype) for t in heads(2, 1, 9, keys, 64))
    bias = keys_hidden(2, keys)
    hidden = (bias == -math.inf).mT
    loud = v.masked_fill(hidden, 1e4)
    assert torch.equal(triton(q, k, loud, bias), triton(q, k, v.masked_fill(hidden, 0), bias))
    behind = torch.cat((loud, torch.full_like(loud, 1e4)), dim=2)[:, :, :keys]
    assert torch.equal(triton(q, k, behind, bias), triton(q, k, loud, bias))


def test_77_keys_are_not_96_of_which_some_score_zero() -> None:
    q, k, v, _ = heads(1, 1, 9, 77, 64)
    low = k.abs() * -q.abs().mean(dim=2, keepdim=True)  # every true score is far below 0, which would win
    exact = ReferenceAttention()(q.abs().double(), low.double(), v.double())
    torch.testing.assert_close(triton(q.abs(), low, v).double(), exact, rtol=1e-5, atol=1e-5)


@DTYPES
def test_scores_of_a_thousand_do_not_overflow(dtype: torch.dtype) -> None:
    q, k, v, _ = heads(1, 2, 9, 77, 64)
    out = triton(*(t.to(dtype) for t in (q * 1e3, k * 1e3, v)))
    chosen = v.to(dtype).gather(2, (q @ k.mT).argmax(-1)[..., None].expand(-1, -1, -1, 64))
    assert (out == chosen).all(-1).float().mean() > 0.9  # two best scores may be nearly equal


def test_hiding_by_the_least_number_is_no_nan_where_it_hides_all() -> None:
    q, k, v, _ = heads(1, 1, 4, 40, 16)
    bias = torch.full((40,), torch.finfo(torch.float32).min)
    torch.testing.assert_close(triton(q, k, v, bias), v.mean(2, keepdim=True).expand_as(q), rtol=1e-5, atol=1e-6)
    bias[3] = 0
    torch.testing.assert_close(triton(q, k, v, bias), v[:, :, 3:4].expand_as(q), rtol=1e-6, atol=0)


@pytest.mark.parametrize("of", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_a_bias_of_any_dtype_keeps_its_precision_beside_bfloat16_queries(of: torch.dtype) -> None:
    q, k, v, _ = (t.bfloat16() for t in heads(1, 1, 4, 20, 16))
    bias = torch.linspace(-2, 2, 20).to(of)
    assert torch.equal(triton(q, k, v, bias), triton(q, k, v, bias.float()))


def test_saves_the_log_of_the_sum_of_exponentials_in_base_2() -> None:
    q, k, v, _ = heads(2, 2, 130, 77, 40)
    bias = keys_hidden(2, 77)
    lse = attention(q, k, v, bias, "")[1]
    exact = ((q.double() @ k.double().mT) / math.sqrt(40) + bias).logsumexp(-1) / math.log(2)
    torch.testing.assert_close(lse.double(), exact, rtol=0, atol=2e-6)


def test_the_result_is_rows_of_all_heads_without_a_copy() -> None:
    q, k, v, _ = heads(2, 3, 5, 7, 16)
    assert triton(q, k, v).transpose(1, 2).flatten(2)._base is not None


def test_nothing_beside_the_tensors_is_read_or_written(fence: Any) -> None:
    packed, grad = torch.stack(heads(2, 2, 70, 70, 40)[:3], dim=2).transpose(1, 3), heads(2, 2, 70, 70, 40)[3]
    q, k, v = fence.copy(packed.contiguous()).permute(2, 0, 3, 1, 4)
    found = there_and_back(triton, q, k, v, fence.copy(keys_hidden(2, 70)), fence.copy(grad))
    assert not any(t.isnan().any() for t in found)
    alone = [fence.copy(t) for t in (q[:, :1, :3], k[:, :1, :1], v[:, :1, :1], grad[:, :1, :3])]
    assert not any(t.isnan().any() for t in there_and_back(triton, *alone[:3], None, alone[3]))


def test_programs_may_run_in_any_order(in_orders: Check) -> None:
    q, k, v, grad = heads(1, 2, 129, 33, 16)
    in_orders(lambda: there_and_back(triton, q, k, v, None, grad))


def test_rows_that_are_billions_of_elements_apart(right_interpreter: object) -> None:
    """Three rows a step of 2**30 apart; what lies between is never touched, and takes no memory."""
    q, k, v, _ = (t.half() for t in heads(1, 1, 3, 3, 16))
    rows = torch.empty(2**31 + 64, dtype=torch.float16).as_strided((2, 1, 1, 3, 16), (32, 0, 0, 2**30, 1))
    rows[0], rows[1] = k, v
    assert torch.equal(triton(q, rows[0], rows[1]), triton(q, k, v))
    (planned,) = plan_forward(q, rows[0], rows[1], None, q, q[..., 0].float(), pick_from("", "sm_80"))
    assert planned.arguments["FAR"]
