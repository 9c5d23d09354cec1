from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kolors_weights.quantizing import Bits, QuantizedLinear, quantize, quantize_linears


def random(*size: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def values(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Return what stored integers stand for, column by column, by the definition of the form."""
    stored = weight.numpy()
    if bits == 4:
        byte = stored.view(np.uint8).astype(np.int64)
        wide = np.empty((len(stored), 2 * stored.shape[1]), dtype=np.int64)
        wide[:, 0::2], wide[:, 1::2] = byte // 16, byte % 16
        stored = np.where(wide > 7, wide - 16, wide)
    scales = scale.double().view(len(stored), -1)
    return torch.from_numpy(stored).double() * scales.repeat_interleave(stored.shape[1] // scales.shape[1], dim=1)


Shapes = st.tuples(st.integers(1, 20), st.integers(1, 6), st.sampled_from([2, 6, 8]))


@given(Shapes, st.sampled_from([8, 4]), st.booleans(), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_no_weight_is_off_by_more_than_half_a_step_or_by_one_where_the_integers_end(
    shape: tuple[int, int, int], bits: Bits, grouped: bool, seed: int
) -> None:
    rows, groups, group = shape
    weight = random(rows, groups * group, seed=seed)
    whole, scale = quantize(weight, bits, group=group if grouped else None)
    assert whole.dtype == torch.int8
    assert scale.shape == ((rows, groups) if grouped else (rows,))
    step = scale.double().abs().view(rows, -1)
    step = step.repeat_interleave(groups * group // step.shape[1], dim=1)
    # The furthest weight decides the sign of the lowest integer; one as far on the other side is a step beyond the
    # highest. A scale that is rounded adds 2^-8 of the weight.
    beyond = weight.abs() > (2 ** (bits - 1) - 1) * step
    off = (values(whole, scale, bits) - weight).abs() - weight.abs() * 2**-8
    assert (off <= torch.where(beyond, step, step / 2)).all()


@pytest.mark.parametrize(("bits", "group"), [(8, None), (8, 32), (4, None), (4, 32)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_computes_with_what_its_integers_stand_for(bits: Bits, group: int | None, bias: bool) -> None:
    weight, x = random(70, 96), random(2, 5, 96, seed=1)
    whole, scale = quantize(weight, bits, group=group)
    added = random(70, seed=2) if bias else None
    found = QuantizedLinear(whole, scale, added)(x)
    wanted = nn.functional.linear(x, values(whole, scale, bits), added)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, None), (4, 64)])
def test_many_rows_are_computed_block_by_block(bits: Bits, group: int | None) -> None:
    weight, x = random(1500, 2048, dtype=torch.float32), random(3, 2048, seed=1)
    whole, scale = quantize(weight, bits, group=group)
    found = QuantizedLinear(whole, scale, None)(x)
    torch.testing.assert_close(found, x @ values(whole, scale, bits).mT, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, 32)])
def test_large_sums_do_not_overflow_and_round_once(dtype: torch.dtype, bits: Bits, group: int | None) -> None:
    weight = random(64, 4096).abs() / 64
    whole, scale = quantize(weight, bits, group=group)
    x = random(4, 4096, seed=1).abs().to(dtype)
    found = QuantizedLinear(whole, scale, None)(x)
    wanted = x.double() @ values(whole, scale, bits).mT
    assert found.dtype == dtype
    assert ((found.double() - wanted).abs() / wanted).max() <= 3 * torch.finfo(dtype).eps


def test_rows_of_zeros_stay_zeros() -> None:
    for bits in (8, 4):
        whole, scale = quantize(torch.zeros(2, 8), bits)
        assert not values(whole, scale, bits).any()
        assert not QuantizedLinear(whole, scale, None)(random(1, 8)).any()


@pytest.mark.parametrize(
    ("columns", "bits", "group"), [(7, 4, None), (8, 8, 3), (9, 4, 3)], ids=["odd", "uneven", "odd group"]
)
def test_columns_that_do_not_come_out_even_are_refused(columns: int, bits: Bits, group: int | None) -> None:
    with pytest.raises(ValueError, match=f"{columns} columns cannot be kept in {bits} bits"):
        quantize(torch.ones(2, columns), bits, group=group)


@pytest.mark.parametrize(("bits", "group", "bytes_each"), [(8, None, 1.0), (4, 64, 0.5)])
def test_all_linear_layers_of_a_module_are_replaced_and_small(bits: Bits, group: int | None, bytes_each: float) -> None:
    module = nn.Sequential(
        nn.Linear(128, 256), nn.ModuleDict({"deep": nn.Linear(256, 128, bias=False)}), nn.LayerNorm(8)
    )
    quantize_linears(module, bits, group=group)
    assert not any(isinstance(child, nn.Linear) for child in module.modules())
    stored = sum(
        t.numel() * t.itemsize for key, t in module.state_dict().items() if ".weight" in key and "2." not in key
    )
    assert stored <= 1.1 * bytes_each * 2 * 128 * 256


def test_a_layer_moves_to_another_dtype_but_for_its_integers_and_scales() -> None:
    whole, scale = quantize(random(8, 8), 8)
    layer = QuantizedLinear(whole, scale.half(), torch.zeros(8)).double()
    assert (layer.weight.dtype, layer.weight_scale.dtype) == (torch.int8, torch.float16)
    assert layer.bias is not None
    assert layer.bias.dtype == torch.float64
    assert torch.equal(layer.weight_scale, scale.half())
    assert layer.to("meta").weight_scale.is_meta
    assert layer.to_empty(device="cpu").weight_scale.dtype == torch.float16


def test_groups_are_as_large_as_come_out_even() -> None:
    module = nn.Sequential(nn.Linear(96, 4), nn.Linear(128, 4))
    quantize_linears(module, 4, group=64)
    assert [list(layer.state_dict()["weight_scale"].shape) for layer in module] == [[4, 3], [4, 2]]
