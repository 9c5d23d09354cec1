from __future__ import annotations

from typing import Any

import pytest
import torch
from kolors_ops.attention import blocks
from kolors_ops.attention.recomputed import RecomputedAttention
from torch import Tensor
from torch.nn import functional as F

ATTEND = RecomputedAttention()


def heads(rows: int, keys: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    """q, k and v of 2 x 3 heads as a projection gives them: views of [B, N, A * E]."""
    draw = torch.Generator().manual_seed(seed)
    flat = [torch.randn(2, n, 3 * 16, generator=draw).to(dtype) for n in (rows, keys, keys)]
    return [x.unflatten(2, (3, 16)).transpose(1, 2).requires_grad_() for x in flat]


def with_gradients(op: Any, inputs: list[Tensor], mask: Tensor | None) -> list[Tensor]:
    out = op(*inputs, mask)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), inputs)]


def exactly(inputs: list[Tensor], mask: Tensor | None) -> list[Tensor]:
    double = [x.detach().double().requires_grad_() for x in inputs]
    mask = None if mask is None else mask.double()
    return with_gradients(lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m), double, mask)


@pytest.mark.parametrize("scores", [1, 40, 200, 2**19])  # a row at a time, some rows, whole heads, everything at once
@pytest.mark.parametrize("shape", [None, (2, 1, 1, 13), (1, 1, 7, 13), (2, 3, 7, 13), (7, 13)])
def test_any_size_of_blocks_gives_the_formulas_result_and_gradients(
    scores: int, shape: tuple[int, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "SCORES", scores)
    mask = None if shape is None else torch.randn(shape, generator=torch.Generator().manual_seed(1))
    if mask is not None:
        mask[..., 4:6] = -torch.inf
    inputs = heads(7, 13)
    for mine, right in zip(with_gradients(ATTEND, inputs, mask), exactly(inputs, mask), strict=True):
        assert (mine - right).abs().max() < 1e-6 * right.abs().max()


def test_bfloat16_is_as_exact_as_torchs_own_kernel_even_at_large_scores() -> None:
    q, k, v = heads(65, 130, torch.bfloat16)
    inputs = [(6 * q).detach().requires_grad_(), k, v]  # scores up to 60, which bfloat16 knows to 0.25
    right = exactly(inputs, None)

    def error(op: Any) -> list[float]:
        found = with_gradients(op, inputs, None)
        return [float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, right, strict=True)]

    theirs = error(lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m))
    for mine, limit in zip(error(ATTEND), theirs, strict=True):
        assert mine < 2 * limit + 2e-3


def test_only_the_inputs_are_kept_for_the_backward_pass() -> None:
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        ATTEND(*heads(50, 60))
    assert sum(tensor.numel() for tensor in kept) == 6 * 16 * (50 + 60 + 60)  # and none of the 6 * 50 * 60 scores


def test_under_autocast_the_result_has_the_inputs_dtype() -> None:
    inputs = heads(5, 9, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = with_gradients(ATTEND, inputs, None)
    assert {x.dtype for x in found} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda q, k, v: (q, k.double(), v, None), "one dtype"),
        (lambda q, k, v: (q, k, v, torch.zeros(13, requires_grad=True)), "no gradient"),
        (lambda q, k, v: (q.to("meta"), k.to("meta"), v.to("meta"), None), "made for CPUs"),
        (lambda q, k, v: (q, k, v, torch.ones(13, dtype=torch.bool)), "added to the scores"),
    ],
)
def test_what_it_cannot_do_is_refused_with_the_reason(change: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ATTEND(*change(*heads(7, 13)))
