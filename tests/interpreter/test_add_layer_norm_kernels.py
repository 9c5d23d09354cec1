from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kolors_ops.add_layer_norm import op
from kolors_ops.add_layer_norm.config import AddLayerNormTriton
from kolors_ops.add_layer_norm.reference import ReferenceAddLayerNorm
from torch import Tensor
from torch.nn import functional as F

from kolors_kernel import BuildContext

triton = AddLayerNormTriton().build(BuildContext())
reference = ReferenceAddLayerNorm()
Check = Callable[..., None]
EPS = 1e-5


def torchs(x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = x if added is None else x + added
    return total, F.layer_norm(total, weight.shape, weight.to(x.dtype), bias.to(x.dtype), eps)


def there_and_back(
    norm: Callable[..., tuple[Tensor, Tensor]], tensors: list[Tensor | None], grads: list[Tensor]
) -> list[Tensor]:
    """The sum and its norm, and the gradients of x, what is added, weight and bias for those of both."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
    total, out = norm(*leaves, EPS)
    wanted = [leaf for leaf in leaves if leaf is not None]
    seen = [(total, grads[0]), (out, grads[1])] if tensors[1] is not None else [(out, grads[1])]
    made, given = zip(*seen, strict=True)
    back = torch.autograd.grad(made, wanted, [grad.to(out.dtype) for grad in given])
    return [*(t.detach() for t in made), *back]


def in_double(tensors: list[Tensor | None]) -> list[Tensor | None]:
    return [None if t is None else t.double() for t in tensors]


def case(
    *shape: int, mean: float = 0.0, scale: float = 1.0, seed: int = 0, alone: bool = False
) -> tuple[list[Tensor | None], list[Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    x, added = (torch.randn(*shape, generator=draw) * scale + mean for _ in range(2))
    weight, bias = (torch.randn(shape[-1], generator=draw) for _ in range(2))
    grads = [torch.randn(*shape, generator=draw) for _ in range(2)]
    return [x, None if alone else added, weight, bias], grads


def checked(tensors: list[Tensor | None], grads: list[Tensor], as_right_as_torch: Check) -> None:
    x, added, *parameters = tensors
    # The sum is rounded before its norm: what is right for the norm is right for the rounded sum.
    total = [x, None] if added is None else [x + added, torch.zeros_like(x)]
    exact = there_and_back(reference, in_double([*total, *parameters]), in_double(grads))
    if added is not None:
        exact[0] = x.double() + added.double()
    as_right_as_torch(there_and_back(triton, tensors, grads), exact, there_and_back(torchs, tensors, grads))


def assert_close(found: list[Tensor], exact: list[Tensor]) -> None:
    """To a few steps of float32: of so few elements torch's own error says little."""
    for ours, right in zip(found, exact, strict=True):
        torch.testing.assert_close(ours.double(), right, rtol=0, atol=2e-5 * max(1.0, float(right.abs().max())))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("mean", "scale"), [(0.0, 1.0), (30.0, 1.0), (0.0, 1e3)])
@pytest.mark.parametrize("shape", [(1, 1, 1024), (2, 3, 640), (1, 7, 1030)])
def test_as_right_as_torch(
    shape: tuple[int, ...], mean: float, scale: float, dtype: torch.dtype, as_right_as_torch: Check
) -> None:
    tensors, grads = case(*shape, mean=mean, scale=scale)
    checked([t.to(dtype) for t in tensors], [g.to(dtype) for g in grads], as_right_as_torch)


@given(
    rows=st.integers(1, 6),
    width=st.integers(1, 300),
    gap=st.integers(0, 9),
    alone=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=15)
def test_any_size_and_spacing_of_rows(rows: int, width: int, gap: int, alone: bool, seed: int) -> None:
    (x, added, weight, bias), grads = case(rows, width + gap, seed=seed, alone=alone)
    more = None if added is None else added[:1, gap:].expand(rows, width)
    spread = [x[:, gap:], more, weight[gap:], bias[gap:]]
    # Of a few elements that happen to be almost equal no float32 sum tells the variance apart.
    x[:, gap:] += 9 * torch.linspace(-1, 1, width)
    given = [grads[0][:, gap:], grads[1][:, :1].expand(rows, width)]
    assert_close(there_and_back(triton, spread, given), there_and_back(reference, in_double(spread), in_double(given)))


def test_rows_to_which_nothing_is_added_are_given_back_themselves(as_right_as_torch: Check) -> None:
    tensors, grads = case(2, 5, 640, alone=True)
    checked(tensors, grads, as_right_as_torch)
    assert triton(*tensors, EPS)[0] is tensors[0]


@pytest.mark.parametrize("rows", [3, 4, 5, 12, 13, 14])
def test_rows_are_cut_into_parts(rows: int, monkeypatch: pytest.MonkeyPatch, fence: object, in_orders: Check) -> None:
    monkeypatch.setattr(op, "PARTS", 4)
    tensors, grads = case(rows, 33)
    exact = there_and_back(reference, in_double(tensors), in_double(grads))
    assert_close(there_and_back(triton, tensors, grads), exact)
    in_orders(lambda: there_and_back(triton, tensors, grads))


def test_a_gradient_of_the_sum_alone_goes_to_both() -> None:
    tensors, (grad, _) = case(3, 40)
    x, added = (t.requires_grad_() for t in tensors[:2])
    total, out = triton(x, added, *tensors[2:], EPS)
    assert all(torch.equal(found, grad) for found in torch.autograd.grad(total, (x, added), grad, retain_graph=True))
    alone = torch.autograd.grad(out, (x, added), grad, retain_graph=True)
    both = torch.autograd.grad((total, out), (x, added), (grad, grad))
    for one, two in zip(alone, both, strict=True):
        torch.testing.assert_close(one + grad, two)


def test_float32_parameters_beside_half_precision_rows(as_right_as_torch: Check) -> None:
    (x, added, weight, bias), grads = case(3, 5, 640)
    tensors = [x.bfloat16(), added.bfloat16(), weight, bias]
    found = there_and_back(triton, tensors, grads)
    assert [t.dtype for t in found[-2:]] == [torch.float32] * 2
    rounded = [(tensors[0] + tensors[1]).double(), torch.zeros_like(x).double(), weight.double(), bias.double()]
    exact = there_and_back(reference, rounded, [g.bfloat16().double() for g in grads])
    as_right_as_torch(found[1:4], exact[1:4], there_and_back(torchs, tensors, grads)[1:4])
    assert_close(found[4:], exact[4:])


def test_nothing_beside_the_tensors_is_read_or_written(fence: object) -> None:
    tensors, grads = case(3, 650)
    spaced = [fence.copy(torch.cat((t, t), dim=-1)[..., : t.shape[-1]]) for t in tensors]
    found = there_and_back(triton, spaced, [fence.copy(g) for g in grads])
    found += there_and_back(triton, [spaced[0], None, *spaced[2:]], [fence.copy(g) for g in grads])
    assert not any(t.isnan().any() for t in found)


def test_what_kernels_do_not_take_is_refused_in_words() -> None:
    x, weight = torch.randn(4, 6), torch.ones(6)

    def reason(x: Tensor = x, added: Tensor | None = x, weight: Tensor = weight, bias: Tensor = weight) -> str:
        return str(triton.refuses(x, added, weight, bias, EPS))

    assert reason() == "None"
    assert "float64 is none of" in reason(x.double(), x.double())
    assert "float32 [6], and x is float32 [4, 6]" in reason(added=x[0])
    assert "float16 [4, 6], and x is float32 [4, 6]" in reason(added=x.half())
    assert "strides (1, 4), are not evenly spaced" in reason(x.T.contiguous().T)
    assert "strides (1, 4), are not evenly spaced" in reason(added=x.T.contiguous().T)
    assert "float32 [5] and float32 [6], not 6 elements" in reason(weight=torch.ones(5))
    assert "not 6 elements side by side" in reason(bias=torch.ones(12)[::2])
    assert "torch.float64 and torch.float64; kernels take one" in reason(weight=weight.double(), bias=weight.double())
    assert "torch.float16 and torch.float32" in reason(weight=weight.half())
    assert "no layer_norm_forward for sm_80, 32 bits and a width of 8193" in reason(
        torch.ones(1, 8193), None, torch.ones(8193), torch.ones(8193)
    )
    with pytest.raises(ValueError, match="'triton' refuses: rows, of strides"):
        triton(x.T.contiguous().T, None, weight, weight, EPS)
