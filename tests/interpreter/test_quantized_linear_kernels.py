from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kolors_chatglm3.architecture import Architecture
from kolors_chatglm3.config import ChatGLM3
from kolors_ops.quantized_linear.config import QuantizedLinearTriton
from kolors_ops.quantized_linear.kernel import half_bytes, whole_bytes
from kolors_ops.quantized_linear.reference import ReferenceQuantizedLinear
from torch import Tensor
from triton import jit
from triton import language as tl

from kolors_kernel import BuildContext
from kolors_weights.quantizing import quantized_linear as torchs

triton = QuantizedLinearTriton().build(BuildContext())
exact = ReferenceQuantizedLinear()
Check = Callable[..., None]
Layer = tuple[Tensor, Tensor, Tensor]


def layer(rows: int, width: int, bits: int, group: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Layer:
    """Every integer there is as a weight, scales for groups of columns or (0) for rows that keep products about 1."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randint(-128, 128, (rows, width * bits // 8), generator=draw).to(torch.int8)
    shape = (rows, width // group) if group else (rows,)
    scale = torch.randn(shape, generator=draw) * 2 ** (1 - bits) / width**0.5
    return weight, scale.to(dtype), torch.randn(rows, generator=draw)


def random(*shape: int, mean: float = 0.0, scale: float = 1.0, seed: int = 9) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale + mean


FORMS = [(8, 0), (4, 0), (4, 64), (4, 128), (8, 64)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("bits", "group"), FORMS)
@pytest.mark.parametrize(
    ("shape", "rows", "mean", "scale"),
    [((32, 64), 64, 0.0, 1.0), ((2, 17, 128), 70, 30.0, 1.0), ((1, 256), 130, 0.0, 1e3)],
    ids=["a block", "ragged", "a row"],
)
def test_as_right_as_torch(
    shape: tuple[int, ...],
    rows: int,
    mean: float,
    scale: float,
    bits: int,
    group: int,
    dtype: torch.dtype,
    as_right_as_torch: Check,
) -> None:
    width = max(shape[-1], group)
    x = random(*shape[:-1], width, mean=mean, scale=scale).to(dtype)
    weight, scales, bias = layer(rows, width, bits, group)
    bias = bias.to(dtype)
    wanted = exact(x.double(), weight, scales, bias.double())
    as_right_as_torch([triton(x, weight, scales, bias)], [wanted], [torchs(x, weight, scales, bias)])


@given(
    rows=st.integers(1, 150),
    width=st.integers(1, 3).map(lambda blocks: 64 * blocks),
    height=st.integers(1, 150),
    form=st.sampled_from(FORMS[:3]),
    gap=st.sampled_from([0, 1, 8]),
    biased=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_number_and_spacing_of_rows(
    rows: int,
    width: int,
    height: int,
    form: tuple[int, int],
    gap: int,
    biased: bool,
    seed: int,
    as_right_as_torch: Check,
) -> None:
    x = random(rows, width + gap, seed=seed)[:, :width].bfloat16()
    weight, scale, bias = layer(height, width, *form, seed=seed, dtype=torch.float16)
    rest = (weight, scale, bias if biased else None)
    wanted = exact(x.double(), weight, scale, bias.double() if biased else None)
    as_right_as_torch([triton(x, *rest)], [wanted], [torchs(x, *rest)])


@jit
def widened(stored, whole, half, C: tl.constexpr):
    byte = tl.load(stored + tl.arange(0, C)[None, :])
    tl.store(whole + tl.arange(0, C)[None, :], whole_bytes(byte, whole.dtype.element_ty))
    tl.store(half + tl.arange(0, 2 * C)[None, :], half_bytes(byte, half.dtype.element_ty))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_every_byte_is_widened_exactly(dtype: torch.dtype) -> None:
    stored = torch.arange(-128, 128).to(torch.int8)
    whole, half = torch.empty(256, dtype=dtype), torch.empty(512, dtype=dtype)
    widened[(1,)](stored, whole, half, C=256)
    assert whole.tolist() == list(range(-128, 128))
    assert half.view(256, 2).tolist() == [[byte >> 4, (byte & 15) - 16 * (byte & 15 > 7)] for byte in range(-128, 128)]


@pytest.mark.parametrize(("bits", "group"), FORMS[:3])
def test_nothing_beside_the_tensors_is_read_or_written(fence: object, bits: int, group: int) -> None:
    x, (weight, scale, bias) = random(35, 192).bfloat16(), layer(70, 128, bits, group)
    made = triton(*(fence.copy(t) for t in (x[:, :128], weight, scale, bias)))
    assert not made.isnan().any()
    assert torch.equal(made, triton(x[:, :128], weight, scale, bias))


def test_programs_may_run_in_any_order(in_orders: Check) -> None:
    x, rest = random(70, 128).half(), layer(150, 128, 4, 64)
    in_orders(lambda: [triton(x, *rest)])


def test_sums_of_integers_may_pass_what_float16_holds() -> None:
    weight, scale = torch.full((1, 64), 127, dtype=torch.int8), torch.tensor([1e-3])
    found = triton(torch.full((1, 64), 60.0).half(), weight, scale, None)  # 60 * 127 * 64 is 487680
    assert found.item() == pytest.approx(487.68, abs=0.25)


WIDTHS = Architecture(
    num_layers=2,
    hidden_size=64,
    num_attention_heads=4,
    multi_query_group_num=2,
    kv_channels=16,
    ffn_hidden_size=128,
)


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_a_quantised_chatglm3_of_kernels_encodes_what_the_reference_does(quantize: str) -> None:
    made = []
    for name in ("reference", "auto"):
        config = {"architecture": WIDTHS, "quantize": quantize, "max_tokens": 32, "quantized_linear": {"type": name}}
        encoder = ChatGLM3.model_validate(config).build(BuildContext())
        with torch.no_grad():
            made.append(encoder.encode(["一只小猫", "", "a cat"]))
    assert encoder.report()["quantized_linear"] == "triton"
    for right, found in ((made[0].tokens, made[1].tokens), (made[0].pooled, made[1].pooled)):
        assert torch.allclose(found, right, rtol=0, atol=1e-5 * float(right.abs().max()))


@pytest.mark.parametrize(
    ("x", "width", "bits", "group", "said"),
    [
        (random(2, 128).double(), 128, 8, 0, "float64 is none of float16, bfloat16, float32"),
        (random(2, 128).requires_grad_(), 128, 8, 0, "wants a gradient"),
        (random(128, 2).T, 128, 8, 0, "side by side"),
        (random(2, 80), 80, 8, 0, "80 columns, 80 to a scale, do not split into blocks of 32"),
        (random(2, 96), 96, 4, 48, "96 columns, 48 to a scale, do not split into blocks of 32"),
        (random(2, 64), 96, 8, 0, r"a weight \[8, 96\] of torch.int8 is none"),
    ],
    ids=["dtype", "gradient", "strides", "columns", "groups", "width"],
)
def test_what_has_no_kernel_is_refused_in_words(x: Tensor, width: int, bits: int, group: int, said: str) -> None:
    with pytest.raises(ValueError, match=f"'triton' refuses: .*{said}"):
        triton(x, *layer(8, width, bits, group))


def test_parts_that_belong_to_other_layers_are_refused_in_words() -> None:
    weight, scale, bias = layer(8, 64, 8, 0)
    for parts, said in (
        ((weight.short(), scale, bias), r"\[8, 64\] of torch.int16"),
        ((weight, scale[1:], bias), r"scales \[7\]"),
        ((weight, scale.view(8, 1).expand(8, 3), bias), r"scales \[8, 3\]"),
        ((weight, scale.new_empty(8, 0), bias), r"scales \[8, 0\]"),
        ((weight, scale, bias[1:]), r"a bias \[7\]"),
        ((weight.T.contiguous().T, scale, bias), "not laid out row by row"),
    ):
        with pytest.raises(ValueError, match=said):
            triton(random(2, 64), *parts)
