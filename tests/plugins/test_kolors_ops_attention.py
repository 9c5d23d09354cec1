from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kolors_ops.attention import blocked, blocks
from kolors_ops.attention.config import AttentionAuto, AttentionBlocked, AttentionReference, AttentionSDPA
from torch import Tensor

from kolors_kernel import BuildContext
from kolors_kernel.protocols import Attention

OPS = [c.build(BuildContext()) for c in (AttentionReference(), AttentionSDPA(), AttentionAuto())]
MASKS = ["none", "keys", "key_row", "full", "per_head"]
every_op = pytest.mark.parametrize("op", OPS, ids=["reference", "sdpa", "auto"])
BLOCKED = AttentionBlocked().build(BuildContext())
forward = pytest.mark.parametrize("op", [*OPS, BLOCKED], ids=["reference", "sdpa", "auto", "blocked"])


def formula(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention in float64, by exponentials and sums and no torch op that an implementation uses."""
    q64, k64, v64 = (t.detach().double().numpy() for t in (q, k, v))
    scores = np.einsum("bhne,bhle->bhnl", q64, k64) / math.sqrt(q.shape[-1])
    scores = scores + (0 if mask is None else mask.detach().double().numpy())
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return torch.from_numpy(np.einsum("bhnl,bhle->bhne", weights / weights.sum(axis=-1, keepdims=True), v64))


def inputs(
    heads: int, queries: int, keys: int, width: int, *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = [(2, heads, n, width) for n in (queries, keys, keys)]
    q, k, v = (torch.randn(s, generator=draw).to(dtype) for s in shapes)
    return q, k, v


def mask_of(form: str, q: Tensor, k: Tensor, *, seed: int = 0) -> Tensor | None:
    batch, heads, queries, _ = q.shape
    keys = k.shape[2]
    shape = {"keys": (batch, 1, 1, keys), "key_row": (keys,), "full": (batch, 1, queries, keys)}
    if form == "none":
        return None
    mask = 2 * torch.randn(
        shape.get(form, (batch, heads, queries, keys)), generator=torch.Generator().manual_seed(seed)
    )
    mask[..., 1::3] = -math.inf  # key 0 always stays
    return mask


def plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """What torch gives op by op in the dtype of q: the yardstick for errors in half precision."""
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return (scores if mask is None else scores + mask.to(q.dtype)).softmax(-1) @ v


def error(result: Tensor, exact: Tensor) -> float:
    return float((result.double() - exact).abs().max())


@pytest.fixture(scope="module", autouse=True)
def _however_few_rows() -> Iterator[None]:
    """Few rows go to another kernel, which is tested as itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocked, "_FEW", 0)
        yield


@forward
@given(
    heads=st.integers(1, 3),
    queries=st.integers(1, 33),
    keys=st.integers(1, 77),
    width=st.sampled_from([1, 8, 40, 64, 80]),
    form=st.sampled_from(MASKS),
    seed=st.integers(0, 2**16),
)
@settings(deadline=None, max_examples=30)
def test_attention_is_its_formula_at_any_size_and_mask(
    op: Attention, heads: int, queries: int, keys: int, width: int, form: str, seed: int
) -> None:
    q, k, v = inputs(heads, queries, keys, width, seed=seed)
    mask = mask_of(form, q, k, seed=seed)
    result = op(q, k, v, mask)
    assert result.shape == q.shape
    assert result.dtype == q.dtype
    assert error(result, formula(q, k, v, mask)) < 2e-6


@every_op
@pytest.mark.parametrize("form", MASKS)
def test_attention_in_float64_stays_in_float64_and_its_gradients_are_its_slopes(op: Attention, form: str) -> None:
    q, k, v = (t.requires_grad_() for t in inputs(2, 3, 5, 4, dtype=torch.float64))
    mask = mask_of(form, q, k)
    assert error(op(q, k, v, mask).detach(), formula(q, k, v, mask)) < 1e-13
    assert torch.autograd.gradcheck(lambda q, k, v: op(q, k, v, mask), (q, k, v))


@pytest.mark.parametrize("width", [40, 64, 80])
@pytest.mark.parametrize("form", ["none", "keys"])
def test_the_gradients_of_sdpa_are_those_of_the_reference(width: int, form: str) -> None:
    gradients = []
    for config in (AttentionReference(), AttentionSDPA()):
        q, k, v = (t.requires_grad_() for t in inputs(3, 17, 77, width))
        result = config.build(BuildContext())(q, k, v, mask_of(form, q, k))
        gradients.append(torch.autograd.grad((result * torch.linspace(-1, 1, width)).sum(), (q, k, v)))
    for ours, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=2e-6)


@every_op
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [40, 64, 80])
@pytest.mark.parametrize("form", ["none", "keys"])
def test_half_precision_errs_at_most_twice_as_much_as_torch_op_by_op(
    op: Attention, dtype: torch.dtype, width: int, form: str
) -> None:
    q, k, v = inputs(2, 33, 77, width, dtype=dtype)
    mask = mask_of(form, q, k)
    exact = formula(q, k, v, mask)
    result = op(q, k, v, mask)
    assert result.dtype == dtype
    assert error(result, exact) <= 2 * error(plain(q, k, v, mask), exact)


@every_op
def test_half_precision_gradients_err_at_most_twice_as_much_as_torch_op_by_op(op: Attention) -> None:
    def gradients(attend: Callable[[Tensor, Tensor, Tensor], Tensor], dtype: torch.dtype) -> list[Tensor]:
        leaves = [t.to(dtype).requires_grad_() for t in inputs(2, 9, 21, 64, dtype=torch.bfloat16)]
        result = attend(leaves[0], leaves[1], leaves[2])
        return list(torch.autograd.grad((result * torch.linspace(-1, 1, 64).to(dtype)).sum(), leaves))

    exact = gradients(AttentionReference().build(BuildContext()), torch.float64)
    ours, yardstick = gradients(op, torch.bfloat16), gradients(plain, torch.bfloat16)
    for mine, torchs, right in zip(ours, yardstick, exact, strict=True):
        assert error(mine, right) <= 2 * error(torchs, right)


@forward
def test_the_log_of_a_count_as_bias_stands_for_that_many_equal_keys(op: Attention) -> None:
    q, k, v = inputs(2, 7, 5, 8)
    counts = torch.tensor([1, 3, 1, 250, 2])
    repeated = op(q, k.repeat_interleave(counts, dim=2), v.repeat_interleave(counts, dim=2))
    torch.testing.assert_close(op(q, k, v, counts.log()), repeated, rtol=1e-5, atol=1e-6)


@forward
def test_a_float32_bias_keeps_its_precision_beside_bfloat16_queries(op: Attention) -> None:
    q, k, v = inputs(1, 4, 2, 8, dtype=torch.bfloat16)
    q, v = torch.zeros_like(q), torch.tensor([0.0, 1.0], dtype=torch.bfloat16).view(1, 1, 2, 1).expand_as(v)
    bias = torch.tensor([math.log(1000.0), math.log(1022.0)])  # both are 6.90625 in bfloat16
    assert op(q, k, v, bias).unique().tolist() == [0.50390625]  # 1022 / 2022 in bfloat16, and not a half


@forward
def test_strided_views_of_one_projection_give_what_copies_give(op: Attention) -> None:
    packed = torch.randn(2, 19, 3 * 4 * 16, generator=torch.Generator().manual_seed(0))
    q, k, v = packed.view(2, 19, 3, 4, 16).permute(2, 0, 3, 1, 4)
    assert not q.is_contiguous()
    torch.testing.assert_close(op(q, k, v), op(q.contiguous(), k.contiguous(), v.contiguous()), rtol=0, atol=1e-6)


@forward
def test_huge_scores_do_not_overflow(op: Attention) -> None:
    q, k, v = inputs(1, 3, 5, 8)
    exact = formula(q * 1e4, k, v)
    assert error(op(q * 1e4, k, v), exact) < 1e-2


def test_the_reference_is_not_rounded_by_autocast() -> None:
    q, k, v = inputs(2, 5, 7, 8)
    with torch.autocast("cpu", torch.bfloat16):
        result = AttentionReference().build(BuildContext())(q, k, v)
    assert error(result, formula(q, k, v)) < 2e-6


@forward
def test_a_boolean_mask_is_an_error_and_not_added_as_ones(op: Attention) -> None:
    q, k, v = inputs(1, 3, 5, 8)
    with pytest.raises(ValueError, match=r"floating, not torch\.bool"):
        op(q, k, v, torch.ones(5, dtype=torch.bool))


def test_sdpa_named_outright_refuses_mixed_dtypes_and_auto_takes_the_reference() -> None:
    q, k, v = inputs(1, 3, 5, 8)
    named = AttentionSDPA().build(BuildContext())
    reason = named.refuses(q, k.bfloat16(), v)
    assert reason is not None
    with pytest.raises(ValueError, match="'sdpa' refuses: q, k and v must have one dtype"):
        named(q, k.bfloat16(), v)
    assert error(AttentionAuto().build(BuildContext())(q, k.bfloat16(), v), formula(q, k.bfloat16(), v)) < 2e-6


@pytest.mark.parametrize("form", MASKS)
def test_blocks_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    q, k, v = inputs(3, 33, 50, 40)
    mask = mask_of(form, q, k)
    exact = formula(q, k, v, mask)
    for scores in (1, 64 * 7, 64 * 33, 64 * 33 * 2, 64 * 33 * 100):  # a row, some, a head, two heads, all
        monkeypatch.setattr(blocks, "SCORES", scores)
        assert error(BLOCKED(q, k, v, mask), exact) < 2e-6


@pytest.mark.parametrize("keys", [31, 256])
@pytest.mark.parametrize("sharpness", [1, 8])
def test_blocks_are_as_exact_in_bfloat16_as_sdpa(keys: int, sharpness: int) -> None:
    q, k, v = inputs(4, 128, keys, 64, dtype=torch.bfloat16)
    q = q * sharpness
    bias = torch.zeros(keys)
    bias[0] = math.log(226)
    exact = formula(q, k, v, bias)
    spread = [float((op(q, k, v, bias).double() - exact).norm()) for op in (BLOCKED, OPS[1])]
    assert spread[0] <= spread[1]


def test_blocks_say_what_they_do_not_take() -> None:
    q, k, v = inputs(1, 3, 5, 8)
    assert BLOCKED.refuses(q, k, v) is None
    for refused, said in (
        ((q.to("meta"), k, v), "'meta'"),
        ((q.double(), k.double(), v.double()), "float64"),
        ((q, k, v.bfloat16()), "bfloat16"),
        ((q.clone().requires_grad_(), k, v), "gradients"),
    ):
        assert said in str(BLOCKED.refuses(*refused))
        with pytest.raises(ValueError, match="'blocked' refuses: "):
            BLOCKED(*refused)
    with torch.no_grad():
        assert BLOCKED.refuses(q.clone().requires_grad_(), k, v) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert "autocast" in str(BLOCKED.refuses(q, k, v))


def test_few_rows_go_to_torchs_own_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = inputs(3, 33, 50, 40)
    monkeypatch.setattr(blocked, "_FEW", 2 * 3 * 33 + 1)
    assert torch.equal(BLOCKED(q, k, v), torch.nn.functional.scaled_dot_product_attention(q, k, v))
    monkeypatch.setattr(blocked, "_FEW", 2 * 3 * 33)
    assert not torch.equal(BLOCKED(q, k, v), torch.nn.functional.scaled_dot_product_attention(q, k, v))


def test_blocks_leave_torchs_settings_as_they_were() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    BLOCKED(*inputs(4, 128, 5, 8))
    assert torch.backends.mkldnn.matmul.fp32_precision == before  # type: ignore[attr-defined]
