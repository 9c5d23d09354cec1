from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kolors_ops.add_layer_norm.config import AddLayerNormAuto, AddLayerNormReference, AddLayerNormTorch
from kolors_ops.add_layer_norm.reference import gradients as add_layer_norm_gradients
from kolors_ops.add_layer_norm.reference import normalised as layer_norm
from kolors_ops.rms_norm.config import RMSNormAuto, RMSNormReference, RMSNormTorch
from kolors_ops.rms_norm.reference import gradients as rms_norm_gradients
from kolors_ops.rms_norm.reference import normalised as rms_norm
from kolors_ops.rotary.config import RotaryAuto, RotaryReference
from torch import Tensor

from kolors_kernel import BuildContext
from kolors_kernel.protocols import AddLayerNorm, RMSNorm, Rotary

EPS = 1e-5
layer_norms = [c.build(BuildContext()) for c in (AddLayerNormReference(), AddLayerNormTorch(), AddLayerNormAuto())]
rms_norms = [c.build(BuildContext()) for c in (RMSNormReference(), RMSNormTorch(), RMSNormAuto())]
rotaries = [c.build(BuildContext()) for c in (RotaryReference(), RotaryAuto())]
every_layer_norm = pytest.mark.parametrize("norm", layer_norms, ids=["reference", "torch", "auto"])
every_rms_norm = pytest.mark.parametrize("norm", rms_norms, ids=["reference", "torch", "auto"])
every_rotary = pytest.mark.parametrize("rotary", rotaries, ids=["reference", "auto"])
leads = st.lists(st.integers(1, 4), min_size=0, max_size=3)


def layer_norm_formula(total: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Layer norm in float64, row by row."""
    values = total.detach().double().numpy()
    rows = values.reshape(-1, values.shape[-1])
    normal = np.stack([(row - row.mean()) / np.sqrt(row.var() + EPS) for row in rows])
    scaled = normal * weight.detach().double().numpy() + bias.detach().double().numpy()
    return torch.from_numpy(scaled.reshape(values.shape))


def rms_norm_formula(x: Tensor, weight: Tensor) -> Tensor:
    """RMS norm in float64, row by row."""
    values = x.detach().double().numpy()
    rows = values.reshape(-1, values.shape[-1])
    normal = np.stack([row / np.sqrt(np.dot(row, row) / len(row) + EPS) for row in rows])
    return torch.from_numpy((normal * weight.detach().double().numpy()).reshape(values.shape))


def rotary_formula(x: Tensor, angles: Tensor) -> Tensor:
    """Each pair times a matrix of rotation, in float64."""
    values, found = x.detach().double().numpy(), np.empty(x.shape)
    for row, head, pair in np.ndindex(*x.shape[:2], x.shape[2] // 2):
        cos, sin = np.cos(float(angles[row, pair])), np.sin(float(angles[row, pair]))
        where = slice(2 * pair, 2 * pair + 2)
        found[row, head, where] = np.array([[cos, -sin], [sin, cos]]) @ values[row, head, where]
    return torch.from_numpy(found)


def rows(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """x and what is added with a mean and a spread of their own, weight and bias."""
    draw = torch.Generator().manual_seed(seed)
    x, added = (torch.randn(shape, generator=draw) * 3 + 1 for _ in range(2))
    # Of a few values that are almost equal no float32 sum tells the variance.
    x = x + 9 * torch.linspace(-1, 1, shape[-1])
    return [t.to(dtype) for t in (x, added, *torch.randn(2, shape[-1], generator=draw))]


def heads(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """x [R, A, E], angles [R, E / 2] and the turns by them."""
    draw = torch.Generator().manual_seed(seed)
    angles = 9 * torch.randn(shape[0], shape[2] // 2, generator=draw)
    return torch.randn(shape, generator=draw), angles, torch.polar(torch.ones_like(angles), angles)


def error(result: Tensor, exact: Tensor) -> float:
    return float((result.detach().double() - exact).abs().max())


@every_layer_norm
@given(lead=leads, width=st.integers(2, 70), alone=st.booleans(), seed=st.integers(0, 2**16))
@settings(deadline=None, max_examples=30)
def test_rows_are_added_and_normed_by_the_formula_at_odd_sizes(
    norm: AddLayerNorm, lead: list[int], width: int, alone: bool, seed: int
) -> None:
    x, added, weight, bias = rows(*lead, width, seed=seed)
    exact = x.double() if alone else x.double() + added.double()
    total, out = norm(x, None if alone else added, weight, bias, EPS)
    assert error(total, exact) < 1e-5
    assert error(out, layer_norm_formula(total, weight, bias)) < 1e-5


@every_layer_norm
@pytest.mark.parametrize("alone", [False, True], ids=["sum", "alone"])
def test_the_gradients_of_layer_norm_are_its_slopes(norm: AddLayerNorm, alone: bool) -> None:
    x, added, weight, bias = (t.double().requires_grad_() for t in rows(2, 3, 7))
    inputs = (x, weight, bias) if alone else (x, added, weight, bias)

    def called(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        return norm(x, *((None,) if alone else ()), *rest, EPS)[1:] if alone else norm(x, *rest, EPS)

    assert torch.autograd.gradcheck(called, inputs)


@every_layer_norm
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_layer_norm_in_half_precision_errs_at_most_twice_as_much_as_torch(
    norm: AddLayerNorm, dtype: torch.dtype
) -> None:
    x, added, weight, bias = rows(7, 62, dtype=dtype)
    rounded = x + added
    total, out = norm(x.clone(), added, weight, bias, EPS)
    assert torch.equal(total, rounded)
    assert out.dtype == dtype
    exact = layer_norm_formula(rounded, weight, bias)
    torchs = torch.nn.functional.layer_norm(rounded, (62,), weight, bias, EPS)
    assert error(out, exact) <= 2 * error(torchs, exact)


@every_layer_norm
def test_where_a_gradient_is_kept_nothing_given_is_changed(norm: AddLayerNorm) -> None:
    tensors = rows(3, 8)
    before = [t.clone() for t in tensors]
    norm(*(t.requires_grad_() for t in tensors), EPS)
    assert all(map(torch.equal, tensors, before))


@every_layer_norm
def test_layer_norm_reads_strided_rows(norm: AddLayerNorm) -> None:
    x, added, weight, bias = rows(5, 4, 19)
    view, more = x.transpose(0, 1)[..., 3:13], added.transpose(0, 1)[..., 9:]
    total, out = norm(view, more, weight[:10], bias[9:], EPS)
    assert error(total, view.double() + more.double()) < 1e-5
    assert error(out, layer_norm_formula(total, weight[:10], bias[9:])) < 1e-5


def test_the_reference_keeps_its_digits_when_the_mean_dwarfs_the_spread() -> None:
    x, _, weight, bias = rows(4, 640)
    shifted = (x.double() + 300 * x.double().std()).float()
    exact = layer_norm_formula(shifted, weight, bias)
    torchs = torch.nn.functional.layer_norm(shifted, (640,), weight, bias, EPS)
    _, out = layer_norms[0](shifted, None, weight, bias, EPS)
    assert error(out, exact) <= 2 * max(error(torchs, exact), 1e-5)


def test_parameters_that_torch_does_not_mix_are_left_to_the_reference() -> None:
    x, _, weight, bias = rows(3, 8)
    half = x.bfloat16()
    with pytest.raises(ValueError, match=r"'torch' refuses: weight and bias are torch\.float32"):
        layer_norms[1](half, None, weight, bias, EPS)
    total, out = layer_norms[2](half, None, weight, bias, EPS)
    assert total is half
    assert error(out, layer_norm_formula(half, weight, bias)) < 3e-2
    with pytest.raises(ValueError, match=r"'torch' refuses: the weight is torch\.float32"):
        rms_norms[1](half, weight, EPS)
    assert rms_norms[2](half, weight, EPS).dtype == torch.bfloat16
    assert error(rms_norms[2](half, weight, EPS), rms_norm_formula(half, weight)) < 3e-2


@every_rms_norm
@given(lead=leads, width=st.integers(1, 70), seed=st.integers(0, 2**16))
@settings(deadline=None, max_examples=30)
def test_rms_norm_is_its_formula_at_odd_sizes(norm: RMSNorm, lead: list[int], width: int, seed: int) -> None:
    x, _, weight, _ = rows(*lead, width, seed=seed)
    assert error(norm(x, weight, EPS), rms_norm_formula(x, weight)) < 1e-5


@every_rms_norm
def test_the_gradients_of_rms_norm_are_its_slopes(norm: RMSNorm) -> None:
    x, _, weight, _ = (t.double().requires_grad_() for t in rows(2, 3, 7))
    assert torch.autograd.gradcheck(lambda *args: norm(*args, EPS), (x, weight))


@every_rms_norm
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rms_norm_in_half_precision_errs_at_most_twice_as_much_as_torch(norm: RMSNorm, dtype: torch.dtype) -> None:
    x, _, weight, _ = rows(7, 62, dtype=dtype)
    exact, out = rms_norm_formula(x, weight), norm(x, weight, EPS)
    assert out.dtype == dtype
    assert error(out, exact) <= 2 * error(torch.nn.functional.rms_norm(x, (62,), weight, EPS), exact)


@every_rms_norm
def test_rms_norm_reads_strided_rows(norm: RMSNorm) -> None:
    x, _, weight, _ = rows(5, 4, 19)
    view = x.transpose(0, 1)[..., 3:13]
    assert error(norm(view, weight[:10], EPS), rms_norm_formula(view, weight[:10])) < 1e-5


@given(lead=leads, width=st.integers(2, 40), beside=st.booleans(), seed=st.integers(0, 2**16))
@settings(deadline=None, max_examples=30)
def test_gradients_written_out_are_those_that_autograd_finds(
    lead: list[int], width: int, beside: bool, seed: int
) -> None:
    x, grad, weight, bias = (t.double().requires_grad_() for t in rows(*lead, width, seed=seed))
    out, mean, rstd = layer_norm(x, weight, bias, EPS)
    more = torch.ones_like(x) if beside else None
    found = add_layer_norm_gradients(grad, more, x, weight, mean, rstd)
    wanted = torch.autograd.grad((out * grad).sum() + (x.sum() if beside else 0), (x, weight, bias))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)
    out, rstd = rms_norm(x, weight, EPS)
    wanted = torch.autograd.grad((out * grad).sum(), (x, weight))
    for one, other in zip(rms_norm_gradients(grad, x, weight, rstd), wanted, strict=True):
        torch.testing.assert_close(one, other)


@every_rotary
@given(
    rows=st.integers(1, 4),
    count=st.integers(1, 5),
    half=st.integers(1, 9),
    gap=st.integers(0, 3),
    seed=st.integers(0, 2**16),
)
@settings(deadline=None, max_examples=30)
def test_pairs_are_turned_at_odd_sizes_and_places(
    rotary: Rotary, rows: int, count: int, half: int, gap: int, seed: int
) -> None:
    x, angles, turns = heads(rows, count + 1, 2 * half, seed=seed)
    wide = torch.cat((x.new_zeros(*x.shape[:2], gap), x), dim=-1)  # pairs begin at odd places too
    found = rotary(wide[:, 1:, gap:], turns)
    assert error(found, rotary_formula(x[:, 1:], angles)) < 1e-5


@every_rotary
def test_turns_keep_lengths_and_add_up(rotary: Rotary) -> None:
    x, _, turns = heads(3, 5, 12)
    found = rotary(x, turns)
    torch.testing.assert_close(found.unflatten(-1, (-1, 2)).norm(dim=-1), x.unflatten(-1, (-1, 2)).norm(dim=-1))
    torch.testing.assert_close(rotary(found, turns), rotary(x, turns * turns))
    torch.testing.assert_close(rotary(found, turns.conj()), x)


@every_rotary
def test_the_gradients_of_turned_heads_are_their_slopes(rotary: Rotary) -> None:
    x, _, turns = heads(2, 3, 6)
    inputs = (x.double().requires_grad_(), turns.to(torch.complex128).requires_grad_())
    assert torch.autograd.gradcheck(rotary, inputs)


@every_rotary
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_turned_heads_in_half_precision_are_rounded_once(rotary: Rotary, dtype: torch.dtype) -> None:
    x, angles, turns = heads(5, 3, 14)
    found, exact = rotary(x.to(dtype), turns), rotary_formula(x.to(dtype), angles)
    assert found.dtype == dtype
    assert ((found.double() - exact).abs() <= torch.finfo(dtype).eps / 2 * exact.abs() + 1e-6).all()
