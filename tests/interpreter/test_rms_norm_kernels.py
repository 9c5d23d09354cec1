from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kolors_ops.rms_norm import op
from kolors_ops.rms_norm.config import RMSNormTriton
from kolors_ops.rms_norm.reference import ReferenceRMSNorm
from torch import Tensor
from torch.nn import functional as F

from kolors_kernel import BuildContext

triton = RMSNormTriton().build(BuildContext())
reference = ReferenceRMSNorm()
Check = Callable[..., None]
EPS = 1e-5


def torchs(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, weight.shape, weight.to(x.dtype), eps)


def there_and_back(norm: Callable[..., Tensor], x: Tensor, weight: Tensor, grad: Tensor) -> list[Tensor]:
    """The norm, and the gradients of x and the weight for that of the norm."""
    leaves = [t.detach().requires_grad_() for t in (x, weight)]
    out = norm(*leaves, EPS)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


def case(*shape: int, mean: float = 0.0, scale: float = 1.0, seed: int = 0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x, grad = torch.randn(*shape, generator=draw) * scale + mean, torch.randn(*shape, generator=draw)
    return [x, torch.randn(shape[-1], generator=draw), grad]


def checked(tensors: list[Tensor], as_right_as_torch: Check) -> None:
    exact = there_and_back(reference, *(t.double() for t in tensors))
    as_right_as_torch(there_and_back(triton, *tensors), exact, there_and_back(torchs, *tensors))


def assert_close(found: list[Tensor], exact: list[Tensor]) -> None:
    """To a few steps of float32: of so few elements torch's own error says little."""
    for ours, right in zip(found, exact, strict=True):
        torch.testing.assert_close(ours.double(), right, rtol=0, atol=2e-5 * max(1.0, float(right.abs().max())))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("mean", "scale"), [(0.0, 1.0), (30.0, 1.0), (0.0, 1e3)])
@pytest.mark.parametrize("shape", [(1, 1, 4096), (2, 3, 1025), (1, 7, 80)])
def test_as_right_as_torch(
    shape: tuple[int, ...], mean: float, scale: float, dtype: torch.dtype, as_right_as_torch: Check
) -> None:
    checked([t.to(dtype) for t in case(*shape, mean=mean, scale=scale)], as_right_as_torch)


@given(rows=st.integers(1, 6), width=st.integers(1, 300), gap=st.integers(0, 9), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=15)
def test_any_size_and_spacing_of_rows(rows: int, width: int, gap: int, seed: int) -> None:
    x, weight, grad = case(rows, width + gap, seed=seed)
    spread = [x[:, gap:], weight[gap:], grad[:, :1].expand(rows, width)]
    assert_close(there_and_back(triton, *spread), there_and_back(reference, *(t.double() for t in spread)))


@pytest.mark.parametrize("rows", [3, 4, 5, 12, 13, 14])
def test_rows_are_cut_into_parts(rows: int, monkeypatch: pytest.MonkeyPatch, fence: object, in_orders: Check) -> None:
    monkeypatch.setattr(op, "PARTS", 4)
    tensors = case(rows, 33)
    assert_close(there_and_back(triton, *tensors), there_and_back(reference, *(t.double() for t in tensors)))
    in_orders(lambda: there_and_back(triton, *tensors))


def test_a_float32_weight_beside_half_precision_rows() -> None:
    x, weight, grad = case(3, 5, 640)
    x, grad = x.bfloat16(), grad.bfloat16()
    out, _, to_weight = there_and_back(triton, x, weight, grad)
    exact = there_and_back(reference, x.double(), weight.double(), grad.double())
    assert (out.dtype, to_weight.dtype) == (torch.bfloat16, torch.float32)
    assert ((out - exact[0]).abs() <= 2**-8 * exact[0].abs() + 1e-6).all()
    torch.testing.assert_close(to_weight.double(), exact[2], rtol=1e-5, atol=1e-5)


def test_nothing_beside_the_tensors_is_read_or_written(fence: object) -> None:
    x, weight, grad = case(3, 650)
    spaced = [fence.copy(torch.cat((t, t), dim=-1)[..., : t.shape[-1]]) for t in (x, weight)]
    assert not any(t.isnan().any() for t in there_and_back(triton, *spaced, fence.copy(grad)))


def test_what_kernels_do_not_take_is_refused_in_words() -> None:
    x, weight = torch.randn(4, 6), torch.ones(6)
    assert triton.refuses(x, weight, EPS) is None
    assert "float64 is none of" in str(triton.refuses(x.double(), weight, EPS))
    assert "strides (1, 4), are not evenly spaced" in str(triton.refuses(x.T.contiguous().T, weight, EPS))
    assert "the weight, of shape [5], is not 6" in str(triton.refuses(x, weight[:5], EPS))
    assert "is not 6 elements side by side" in str(triton.refuses(x, torch.ones(12)[::2], EPS))
    assert "the weight is torch.float64" in str(triton.refuses(x, weight.double(), EPS))
    wide = "no rms_norm_forward for sm_80, 32 bits and a width of 8193"
    assert wide in str(triton.refuses(torch.ones(1, 8193), torch.ones(8193), EPS))
    with pytest.raises(ValueError, match="'triton' refuses: its rows"):
        triton(x.T.contiguous().T, weight, EPS)
