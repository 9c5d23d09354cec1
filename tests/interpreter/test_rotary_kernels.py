from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kolors_ops.rotary.config import RotaryTriton
from kolors_ops.rotary.reference import ReferenceRotary
from torch import Tensor

from kolors_kernel import BuildContext

triton = RotaryTriton().build(BuildContext())
reference = ReferenceRotary()
Check = Callable[..., None]


def torchs(x: Tensor, turns: Tensor) -> Tensor:
    """As it is written without complex numbers, in the dtype of x."""
    cos, sin = (t.to(x.dtype).unsqueeze(1) for t in (turns.real, turns.imag))
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def there_and_back(op: Callable[..., Tensor], x: Tensor, turns: Tensor, grad: Tensor) -> list[Tensor]:
    """The turned heads and the gradient of x for theirs."""
    leaf = x.detach().requires_grad_()
    made = op(leaf, turns)
    return [made.detach(), *torch.autograd.grad(made, leaf, grad.to(made.dtype))]


def case(
    rows: int, heads: int, width: int, *, mean: float = 0.0, scale: float = 1.0, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x, grad = (torch.randn(rows, heads, width, generator=draw) for _ in range(2))
    angles = 40 * torch.randn(rows, width // 2, generator=draw)
    return x * scale + mean, torch.polar(torch.ones_like(angles), angles), grad


def checked(x: Tensor, turns: Tensor, grad: Tensor, as_right_as_torch: Check) -> None:
    exact = there_and_back(reference, x.double(), turns.to(torch.complex128), grad.double())
    as_right_as_torch(there_and_back(triton, x, turns, grad), exact, there_and_back(torchs, x, turns, grad))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("mean", "scale"), [(0.0, 1.0), (30.0, 1.0), (0.0, 1e3)])
@pytest.mark.parametrize("shape", [(1, 8, 128), (3, 34, 128), (2, 5, 10), (2, 3, 200)])
def test_as_right_as_torch(
    shape: tuple[int, int, int], mean: float, scale: float, dtype: torch.dtype, as_right_as_torch: Check
) -> None:
    x, turns, grad = case(*shape, mean=mean, scale=scale)
    checked(x.to(dtype), turns, grad.to(dtype), as_right_as_torch)


@given(
    rows=st.integers(1, 4),
    heads=st.integers(1, 19),
    half=st.integers(1, 70),
    more=st.integers(0, 3),
    gap=st.integers(0, 5),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_size_and_spacing_of_heads(
    rows: int, heads: int, half: int, more: int, gap: int, seed: int, as_right_as_torch: Check
) -> None:
    x, turns, grad = case(rows, heads + more, 2 * (half + gap), seed=seed)
    x, turns = x[:, more:, gap : gap + 2 * half], turns[:1, gap:].expand(rows, half)
    checked(x, turns, grad[:, more:, :1].expand(x.shape), as_right_as_torch)
    assert triton(x, turns).is_contiguous()


def test_turns_of_one_leave_what_they_turn_bit_by_bit() -> None:
    x, turns, _ = case(2, 36, 128)
    turns[:, 32:] = 1  # as ChatGLM3, which turns the first half of each head
    for dtype in (torch.float32, torch.bfloat16):
        heads = x.to(dtype)[:, :34]
        assert torch.equal(triton(heads, turns)[..., 64:], heads[..., 64:])


def test_turning_back_undoes_a_turn_and_has_gradients_of_its_own() -> None:
    x, turns, _ = case(2, 3, 12)
    torch.testing.assert_close(triton(triton(x, turns), turns.conj()), x)
    small, fine = x[:1, :1, :4].clone().requires_grad_(), turns[:1, :2]
    (grad,) = torch.autograd.grad(triton(small, fine).square().sum(), small, create_graph=True)
    torch.testing.assert_close(grad, 2 * small)  # the length of what is turned is kept
    (second,) = torch.autograd.grad(grad.sum(), small)
    torch.testing.assert_close(second, torch.full_like(small, 2.0))


def test_nothing_beside_the_tensors_is_read_or_written(fence: object) -> None:
    x, turns, grad = case(3, 12, 22)
    spaced = fence.copy(x[:, :11, 2:20])
    fenced = torch.view_as_complex(fence.copy(torch.view_as_real(turns[:, :9])))
    assert not any(t.isnan().any() for t in there_and_back(triton, spaced, fenced, fence.copy(grad[:, :11, 2:20])))


def test_programs_may_run_in_any_order(in_orders: Check) -> None:
    in_orders(lambda: there_and_back(triton, *case(3, 19, 20)))


def test_what_kernels_do_not_take_is_refused_in_words() -> None:
    x, turns, _ = case(2, 3, 8)
    assert triton.refuses(x, turns) is None
    assert "float64 is none of" in str(triton.refuses(x.double(), turns))
    assert "the turns are torch.complex128" in str(triton.refuses(x, turns.to(torch.complex128)))
    assert "the turns require a gradient" in str(triton.refuses(x, turns.clone().requires_grad_()))
    assert "x is [2, 3, 8] and its turns [1, 4]" in str(triton.refuses(x, turns[:1]))
    assert "x is [2, 3, 7] and its turns [2, 3]" in str(triton.refuses(x[..., 1:], turns[:, 1:]))
    assert "not [R, A, E]" in str(triton.refuses(x[0], turns[0]))
    assert "pairs lie apart" in str(triton.refuses(torch.randn(2, 8, 3).transpose(1, 2), turns))
    assert "pairs lie apart" in str(triton.refuses(x, torch.view_as_complex(torch.ones(4, 2, 2)).T))
    wide = "no rotary_turn for sm_80, 32 bits and a width of 258"
    assert wide in str(triton.refuses(torch.ones(1, 1, 258), torch.ones(1, 129, dtype=torch.complex64)))
    with pytest.raises(ValueError, match="'triton' refuses: the turns are"):
        triton(x, turns.to(torch.complex128))
