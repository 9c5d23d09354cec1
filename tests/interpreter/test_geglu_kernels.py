from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kolors_ops.geglu.config import GEGLUTriton
from kolors_ops.geglu.reference import ReferenceGEGLU
from torch import Tensor
from torch.nn import functional as F

from kolors_kernel import BuildContext

triton = GEGLUTriton().build(BuildContext())
Check = Callable[..., None]


def torchs(x: Tensor) -> Tensor:
    value, gate = x.chunk(2, dim=-1)
    return value * F.gelu(gate)


def there_and_back(op: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> list[Tensor]:
    """The result of op and the gradient of x for that of the result."""
    leaf = x.detach().requires_grad_()
    made = op(leaf)
    return [made.detach(), *torch.autograd.grad(made, leaf, grad.to(made.dtype))]


def rows(*shape: int, mean: float = 0.0, scale: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=draw) * scale + mean
    return x, torch.randn(*shape[:-1], shape[-1] // 2, generator=draw)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("mean", "scale"), [(0.0, 1.0), (30.0, 1.0), (0.0, 1e3)])
@pytest.mark.parametrize("shape", [(1, 1, 128), (2, 3, 2 * 1025), (1, 7, 2 * 80)])
def test_as_right_as_torch(
    shape: tuple[int, ...], mean: float, scale: float, dtype: torch.dtype, as_right_as_torch: Check
) -> None:
    x, grad = (t.to(dtype) for t in rows(*shape, mean=mean, scale=scale))
    exact = there_and_back(ReferenceGEGLU(), x.double(), grad.double())
    if dtype == torch.float16 and max(float(t.abs().max()) for t in exact) > torch.finfo(dtype).max:
        grad, x = grad / 256, x / 64  # products of float16 of a thousand have no place in it
        exact = there_and_back(ReferenceGEGLU(), x.double(), grad.double())
    as_right_as_torch(there_and_back(triton, x, grad), exact, there_and_back(torchs, x, grad))


@given(
    rows_=st.integers(1, 5),
    half=st.integers(1, 300),
    gap=st.integers(0, 9),
    before=st.integers(0, 3),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_size_and_spacing_of_rows(
    rows_: int, half: int, gap: int, before: int, seed: int, as_right_as_torch: Check
) -> None:
    wide, grad = rows(rows_, 2 * half + gap + before, seed=seed)
    x, grad = wide[:, before : before + 2 * half], grad[:, :1].expand(rows_, half)
    exact = there_and_back(ReferenceGEGLU(), x.double(), grad.double())
    as_right_as_torch(there_and_back(triton, x, grad), exact, there_and_back(torchs, x, grad))


def test_nothing_beside_the_tensors_is_read_or_written(fence: object) -> None:
    x, grad = rows(3, 2 * 1025)
    spaced = fence.copy(torch.cat((x, x), dim=1)[:, : x.shape[1]])
    found = there_and_back(triton, spaced, fence.copy(grad))
    assert not any(t.isnan().any() for t in found)


def test_programs_may_run_in_any_order(in_orders: Check) -> None:
    x, grad = rows(3, 2 * 2100)
    in_orders(lambda: there_and_back(triton, x, grad))


def test_rows_that_are_no_rows_are_refused_in_words() -> None:
    reason = triton.refuses(torch.randn(4, 6, 8).transpose(0, 1).transpose(1, 2))
    assert reason is not None and "strides" in reason
    with pytest.raises(ValueError, match="side by side"):
        triton(torch.randn(8, 6).T)


def test_float64_is_refused_in_words() -> None:
    assert "float64 is none of float16, bfloat16, float32" in str(triton.refuses(torch.randn(2, 4).double()))
