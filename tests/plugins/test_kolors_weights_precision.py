from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kolors_weights import precision
from kolors_weights.precision import exact_onednn, why_not_onednn, without_onednn

MKLDNN: Any = torch.backends.mkldnn
MATMUL = MKLDNN.matmul


@pytest.fixture(autouse=True)
def as_in_a_new_process() -> Iterator[None]:
    why_not_onednn.cache_clear()
    yield
    why_not_onednn.cache_clear()


@pytest.fixture
def amx(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that uses the leave to round: every product passes through bfloat16 where the setting allows it."""

    def product(x: Tensor, y: Tensor) -> Tensor:
        rounds = MATMUL.fp32_precision == "bf16" and x.dtype == torch.float32
        return (x.bfloat16() @ y.bfloat16()).float() if rounds else x @ y

    draw = torch.Generator().manual_seed(0)
    pair = torch.randn(32, 48, generator=draw), torch.randn(48, 16, generator=draw)
    monkeypatch.setattr(precision, "_products", lambda: {"a product": (product, pair)})


def test_float32_inside_is_as_exact_as_float32_is() -> None:
    draw = torch.Generator().manual_seed(1)
    x, weight = torch.randn(300, 500, generator=draw), torch.randn(200, 500, generator=draw)
    q, k, v = torch.randn(3, 1, 2, 200, 64, generator=draw)
    with exact_onednn() as said:
        found = (F.linear(x, weight), torch.bmm(q[0], k[0].mT), F.scaled_dot_product_attention(q, k, v))
    assert said == "oneDNN" or "torch's own library" in said
    q, k, v = q.double(), k.double(), v.double()
    right = (F.linear(x.double(), weight.double()), torch.bmm(q[0], k[0].mT), F.scaled_dot_product_attention(q, k, v))
    for mine, exact in zip(found, right, strict=True):
        assert (mine - exact).abs().max() < 1e-5 * exact.abs().max()


def test_a_processor_that_would_round_stays_exact_and_the_reason_is_said(amx: None) -> None:
    with exact_onednn() as said:
        assert MATMUL.fp32_precision == "ieee"
    assert "'a product' is off by" in said
    assert said.endswith(str(why_not_onednn()))


@pytest.mark.parametrize("users", ["none", "ieee", "bf16"])
def test_what_was_set_before_comes_back_even_after_an_error(users: str) -> None:
    before = MATMUL.fp32_precision
    try:
        MATMUL.fp32_precision = users
        with pytest.raises(KeyError), exact_onednn():
            raise KeyError
        assert MATMUL.fp32_precision == users
        with exact_onednn(), exact_onednn():
            assert MATMUL.fp32_precision in ("bf16", "ieee")
        assert MATMUL.fp32_precision == users
    finally:
        MATMUL.fp32_precision = before


def test_a_users_own_leave_to_round_does_not_hold_inside(amx: None) -> None:
    before = MATMUL.fp32_precision
    try:
        MATMUL.fp32_precision = "bf16"
        with exact_onednn():
            assert MATMUL.fp32_precision == "ieee"
    finally:
        MATMUL.fp32_precision = before


def test_small_products_can_be_left_to_torchs_own_library_inside() -> None:
    with exact_onednn():
        inside = MATMUL.fp32_precision
        with without_onednn():
            assert MATMUL.fp32_precision == "ieee"
        assert MATMUL.fp32_precision == inside


def test_gpus_keep_their_precision() -> None:
    before = torch.backends.cuda.matmul.fp32_precision
    with exact_onednn():
        assert torch.backends.cuda.matmul.fp32_precision == before


@pytest.mark.parametrize("mode", [torch.inference_mode(), torch.no_grad(), torch.autocast("cpu", torch.bfloat16)])
def test_the_trial_gives_the_same_answer_in_every_mode_of_the_caller(mode: Any) -> None:
    plain = why_not_onednn()
    why_not_onednn.cache_clear()
    with mode:
        assert why_not_onednn() == plain


def test_a_torch_that_cannot_pick_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(type(MKLDNN), "matmul")
    with exact_onednn() as said:
        assert "cannot pick oneDNN" in said
