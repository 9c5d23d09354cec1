from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kolors_ops.geglu.config import GEGLUAuto, GEGLUReference, GEGLUTorch
from kolors_ops.group_norm_silu.config import GroupNormSiLUAuto, GroupNormSiLUReference, GroupNormSiLUTorch
from torch import Tensor

from kolors_kernel import BuildContext
from kolors_kernel.protocols import GEGLU, GroupNormSiLU

EPS = 1e-5
norms = [c.build(BuildContext()) for c in (GroupNormSiLUReference(), GroupNormSiLUTorch(), GroupNormSiLUAuto())]
geglus = [c.build(BuildContext()) for c in (GEGLUReference(), GEGLUTorch(), GEGLUAuto())]
every_norm = pytest.mark.parametrize("norm", norms, ids=["reference", "torch", "auto"])
every_geglu = pytest.mark.parametrize("geglu", geglus, ids=["reference", "torch", "auto"])


def norm_formula(x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
    """Group norm and SiLU in float64, group by group."""
    values = x.detach().double().numpy()
    rows = values.reshape(x.shape[0] * groups, -1)
    normal = np.stack([(row - row.mean()) / np.sqrt(((row - row.mean()) ** 2).mean() + EPS) for row in rows])
    per_channel = (-1, *(1,) * (x.ndim - 2))
    scaled = normal.reshape(x.shape) * weight.double().numpy().reshape(per_channel)
    scaled = scaled + bias.double().numpy().reshape(per_channel)
    return torch.from_numpy(scaled / (1 + np.exp(-scaled)))


def geglu_formula(x: Tensor) -> Tensor:
    """GEGLU in float64 by the error function of the standard library."""
    values = x.detach().double().flatten(0, -2)
    half = x.shape[-1] // 2
    rows = [
        [a * b * 0.5 * math.erfc(-b / math.sqrt(2)) for a, b in zip(r[:half], r[half:], strict=True)]
        for r in values.tolist()
    ]
    return torch.tensor(rows, dtype=torch.float64).view(*x.shape[:-1], half)


def picture(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """x of this shape with a mean and a spread of its own, weight and bias."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=draw) * 3 + 1
    weight, bias = torch.randn(shape[1], generator=draw), torch.randn(shape[1], generator=draw)
    return x.to(dtype), weight.to(dtype), bias.to(dtype)


def error(result: Tensor, exact: Tensor) -> float:
    return float((result.double() - exact).abs().max())


@every_norm
@given(
    groups=st.sampled_from([1, 2, 3, 32]),
    per_group=st.sampled_from([1, 3, 10]),
    height=st.integers(3, 7),  # of two values a group may hold almost equal ones, which no float32 sum tells apart
    width=st.integers(3, 7),
    last=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(deadline=None, max_examples=30)
def test_group_norm_silu_is_its_formula_at_odd_sizes_and_keeps_the_memory_format(
    norm: GroupNormSiLU, groups: int, per_group: int, height: int, width: int, last: bool, seed: int
) -> None:
    x, weight, bias = picture(2, groups * per_group, height, width, seed=seed)
    layout = torch.channels_last if last else torch.contiguous_format
    x = x.to(memory_format=layout)
    result = norm(x, weight, bias, groups, EPS)
    assert result.shape == x.shape
    assert result.dtype == x.dtype
    assert result.is_contiguous(memory_format=layout)
    assert error(result, norm_formula(x, weight, bias, groups)) < 1e-5


@every_norm
@pytest.mark.parametrize("shape", [(3, 6), (2, 6, 5), (1, 6, 2, 3), (1, 6, 2, 1, 3)])
def test_group_norm_silu_takes_any_number_of_dimensions_and_its_gradients_are_its_slopes(
    norm: GroupNormSiLU, shape: tuple[int, ...]
) -> None:
    x, weight, bias = (t.requires_grad_() for t in picture(*shape, dtype=torch.float64))
    result = norm(x, weight, bias, 2, EPS)
    assert error(result.detach(), norm_formula(x, weight.detach(), bias.detach(), 2)) < 1e-12
    assert torch.autograd.gradcheck(lambda *args: norm(*args, 2, EPS), (x, weight, bias))


@every_norm
@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_group_norm_silu_in_half_precision_errs_at_most_twice_as_much_as_torch(
    norm: GroupNormSiLU, dtype: torch.dtype, last: bool
) -> None:
    x, weight, bias = picture(2, 60, 9, 7, dtype=dtype)
    x = x.to(memory_format=torch.channels_last) if last else x
    exact = norm_formula(x, weight, bias, 6)
    torchs = torch.nn.functional.silu(torch.nn.functional.group_norm(x, 6, weight, bias, EPS))
    assert error(norm(x, weight, bias, 6, EPS), exact) <= 2 * error(torchs, exact)


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])
def test_the_gradients_of_torchs_group_norm_silu_are_those_of_the_reference(last: bool) -> None:
    gradients = []
    for norm in norms[:2]:
        x, weight, bias = (t.requires_grad_() for t in picture(2, 30, 7, 5))
        laid_out = x.to(memory_format=torch.channels_last) if last else x
        result = norm(laid_out, weight, bias, 3, EPS)
        gradients.append(torch.autograd.grad((result * torch.linspace(-1, 1, 5)).sum(), (x, weight, bias)))
    for ours, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-4)


@every_norm
def test_group_norm_silu_reads_a_view_that_skips_columns(norm: GroupNormSiLU) -> None:
    x, weight, bias = picture(2, 6, 5, 8)
    view = x.to(memory_format=torch.channels_last)[:, :, 1:, ::2]
    assert error(norm(view, weight, bias, 3, EPS), norm_formula(view, weight, bias, 3)) < 1e-5


def test_the_reference_keeps_its_digits_when_the_mean_dwarfs_the_spread() -> None:
    x, weight, bias = picture(1, 32, 16, 16)
    shifted = (x.double() + 300 * x.double().std()).float()
    exact = norm_formula(shifted, weight, bias, 2)
    torchs = torch.nn.functional.silu(torch.nn.functional.group_norm(shifted, 2, weight, bias, EPS))
    assert error(norms[0](shifted, weight, bias, 2, EPS), exact) <= 2 * max(error(torchs, exact), 1e-5)


@every_norm
@pytest.mark.parametrize("groups", [4, 0, -2])
def test_groups_that_do_not_divide_the_channels_are_an_error(norm: GroupNormSiLU, groups: int) -> None:
    x, weight, bias = picture(1, 6, 2, 2)
    with pytest.raises(ValueError, match=f"6 channels do not split into {groups} groups"):
        norm(x, weight, bias, groups, EPS)


def test_float32_parameters_beside_half_precision_pictures_are_taken_on_the_cpu() -> None:
    x, weight, bias = picture(2, 6, 5, 3)
    for norm in norms:
        assert norm.refuses(x.bfloat16(), weight, bias, 3, EPS) is None
        assert error(norm(x.bfloat16(), weight, bias, 3, EPS), norm_formula(x.bfloat16(), weight, bias, 3)) < 5e-2


def test_torchs_norm_refuses_parameters_it_cannot_mix_and_auto_takes_the_reference() -> None:
    x, weight, bias = picture(2, 6, 5, 3)
    with pytest.raises(ValueError, match=r"'torch' refuses: weight and bias are torch\.float64"):
        norms[1](x, weight.double(), bias.double(), 3, EPS)
    result = norms[2](x, weight.double(), bias.double(), 3, EPS)
    assert result.dtype == torch.float32
    assert error(result, norm_formula(x, weight, bias, 3)) < 1e-5


@every_geglu
@given(lead=st.lists(st.integers(1, 5), min_size=1, max_size=3), half=st.integers(1, 41), seed=st.integers(0, 2**16))
@settings(deadline=None, max_examples=30)
def test_geglu_is_its_formula_at_odd_sizes(geglu: GEGLU, lead: list[int], half: int, seed: int) -> None:
    x = 3 * torch.randn(*lead, 2 * half, generator=torch.Generator().manual_seed(seed))
    result = geglu(x)
    assert result.shape == (*lead, half)
    value, gate = x.double().chunk(2, dim=-1)
    # 1 + erf cancels for a gate far below zero, so what counts is the error beside value times gate.
    assert ((result - geglu_formula(x)).abs() <= 5e-7 * (value * gate).abs() + 1e-12).all()


@every_geglu
def test_geglu_takes_the_value_first_and_the_exact_gelu_of_the_gate(geglu: GEGLU) -> None:
    # gelu(2) is 1.9544997 by the error function and 1.9545977 by the tanh approximation.
    assert geglu(torch.tensor([[-10.0, 2.0]])).item() == pytest.approx(-19.544997, abs=1e-5)


@every_geglu
def test_the_gradients_of_geglu_are_its_slopes(geglu: GEGLU) -> None:
    x = torch.randn(2, 3, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(geglu, (x,))


@every_geglu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_geglu_in_half_precision_errs_at_most_twice_as_much_as_torch(geglu: GEGLU, dtype: torch.dtype) -> None:
    x = torch.randn(7, 62, generator=torch.Generator().manual_seed(0)).to(dtype)
    exact = geglu_formula(x)
    result = geglu(x)
    assert result.dtype == dtype
    value, gate = x.chunk(2, dim=-1)
    assert error(result, exact) <= 2 * error(value * torch.nn.functional.gelu(gate), exact)


@every_geglu
def test_geglu_reads_a_strided_view(geglu: GEGLU) -> None:
    wide = torch.randn(4, 9, 20, generator=torch.Generator().manual_seed(0))
    view = wide.transpose(0, 1)[..., 3:13]
    torch.testing.assert_close(geglu(view), geglu(view.contiguous()), rtol=0, atol=1e-6)


@every_geglu
def test_an_odd_last_dimension_has_no_halves(geglu: GEGLU) -> None:
    with pytest.raises(ValueError, match="odd: 7"):
        geglu(torch.zeros(2, 7))
