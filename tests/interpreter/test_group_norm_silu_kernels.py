from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from kolors_ops.group_norm_silu.config import GroupNormSiLUTriton
from kolors_ops.group_norm_silu.op import group_norm_silu
from kolors_ops.group_norm_silu.plans import COMBINED, TILED
from kolors_ops.group_norm_silu.reference import ReferenceGroupNormSiLU
from kolors_ops.table import Row, write_rows
from torch import Tensor
from torch.nn import functional as F

from kolors_kernel import BuildContext

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # to infinity, as it should be
EPS = 1e-5
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
Norm = Callable[..., Tensor]
Check = Callable[..., None]

triton = GroupNormSiLUTriton().build(BuildContext())
reference = ReferenceGroupNormSiLU()
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_format = pytest.mark.parametrize("layout", FORMATS)


@pytest.fixture(scope="module")
def in_tiles(tmp_path_factory: pytest.TempPathFactory) -> Norm:
    """The op by a table of small tiles and no kernels for whole groups: small tensors need many programs."""
    blocks = {"contiguous": {"CHANNELS": 16, "PIXELS": 16}, "channels_last": {"CHANNELS": 32, "PIXELS": 8}}
    rows = []
    for bits in (16, 32):
        given = {"family": "sm_80", "bits": bits, "width": 65536, "warps": 4, "ctas": 1}
        for kernel in TILED:
            steps = {"STEPS": 2} if "sums" in kernel else {}
            rows += [Row(kernel=kernel, case=c, blocks={**b, **steps}, **given) for c, b in blocks.items()]
        rows += [Row(kernel=kernel, blocks={"BLOCK": 32}, **given) for kernel in COMBINED]
    path: Path = tmp_path_factory.mktemp("table") / "launches.json"
    write_rows(rows, path)
    return GroupNormSiLUTriton(table=path).build(BuildContext())


def torchs(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, *, silu: bool = True) -> Tensor:
    normal = F.group_norm(x, groups, weight.to(x.dtype), bias.to(x.dtype), eps)
    return F.silu(normal) if silu else normal


def formula(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, *, silu: bool = True) -> Tensor:
    split = x.unflatten(1, (groups, -1)).flatten(2)
    centred = split - split.mean(2, keepdim=True)
    normal = (centred / (centred.square().mean(2, keepdim=True) + eps).sqrt()).view(x.shape)
    per_channel = (-1, *(1,) * (x.ndim - 2))
    scaled = normal * weight.to(x.dtype).view(per_channel) + bias.to(x.dtype).view(per_channel)
    return scaled * torch.sigmoid(scaled) if silu else scaled


def there_and_back(op: Norm, tensors: list[Tensor], groups: int, *, silu: bool = True) -> list[Tensor]:
    """The result of op for x, weight and bias, and their gradients for that of the result, the last tensor."""
    *leaves, grad = (t.detach() for t in tensors)
    made = op(*(t.requires_grad_() for t in leaves), groups, EPS, silu=silu)
    found = [made.detach(), *torch.autograd.grad(made, leaves, grad.to(made.dtype))]
    for t in leaves:
        t.requires_grad_(False)
    return found


def picture(*shape: int, mean: float = 0.0, scale: float = 1.0, seed: int = 0, layout: str = "") -> list[Tensor]:
    """x, weight, bias and the gradient of the result; means differ from picture to picture."""
    draw = torch.Generator().manual_seed(seed)
    x, grad = (torch.randn(shape, generator=draw) for _ in range(2))
    weight, bias = (torch.randn(shape[1], generator=draw) for _ in range(2))
    x = x * scale + mean + torch.linspace(0, scale, shape[0]).view(-1, *(1,) * (len(shape) - 1))
    if layout:
        x, grad = (t.to(memory_format=FORMATS[layout]) for t in (x, grad))
    return [x, weight, bias, grad]


def compared(op: Norm, tensors: list[Tensor], groups: int, check: Check, *, silu: bool = True) -> list[Tensor]:
    """Check op against float64 and torch's own, by its kernel or by the formula, and return what it found.

    Of few numbers one of the two may be right to the last bit by luck.
    """
    exact = there_and_back(reference, [t.double() for t in tensors], groups, silu=silu)
    found = there_and_back(op, tensors, groups, silu=silu)
    ways = (torchs, formula) if tensors[0].dtype == torch.float32 else (torchs,)
    made = [there_and_back(way, tensors, groups, silu=silu) for way in ways]
    check(
        found, exact, [max(of, key=lambda t: float((t - e).abs().max())) for *of, e in zip(*made, exact, strict=True)]
    )
    return found


@every_dtype
@every_format
@pytest.mark.parametrize(("mean", "scale"), [(0.0, 1.0), (30.0, 1.0), (0.0, 1e3)])
def test_whole_groups_are_as_right_as_torch(
    mean: float, scale: float, layout: str, dtype: torch.dtype, as_right_as_torch: Check
) -> None:
    tensors = [t.to(dtype) for t in picture(2, 20, 7, 5, mean=mean, scale=scale, layout=layout)]
    found = compared(triton, tensors, 2, as_right_as_torch)
    assert all(t.is_contiguous(memory_format=FORMATS[layout]) for t in found[:2])


@every_dtype
@every_format
@pytest.mark.parametrize(("mean", "scale"), [(0.0, 1.0), (30.0, 1.0), (0.0, 1e3)])
def test_groups_cut_into_tiles_are_as_right_as_torch(
    mean: float, scale: float, layout: str, dtype: torch.dtype, in_tiles: Norm, as_right_as_torch: Check
) -> None:
    tensors = [t.to(dtype) for t in picture(2, 20, 7, 5, mean=mean, scale=scale, layout=layout)]
    found = compared(in_tiles, tensors, 2, as_right_as_torch)
    assert all(t.is_contiguous(memory_format=FORMATS[layout]) for t in found[:2])


@every_format
def test_groups_of_ten_channels_are_as_right_as_torch_where_there_are_32(layout: str, as_right_as_torch: Check) -> None:
    compared(triton, picture(1, 320, 4, 4, layout=layout), 32, as_right_as_torch)


@every_format
def test_large_groups_are_cut_into_the_tiles_that_ship(layout: str, as_right_as_torch: Check) -> None:
    tensors = [t.bfloat16() for t in picture(1, 20, 35, 31, layout=layout)]
    compared(triton, tensors, 2, as_right_as_torch)


@given(
    batch=st.integers(1, 2),
    groups=st.integers(1, 3),
    per_group=st.integers(1, 12),
    space=st.sampled_from([(), (1,), (37,), (1, 1), (5, 7), (8, 8), (1, 33), (3, 2, 5)]),
    layout=st.sampled_from([*FORMATS]),
    silu=st.booleans(),
    whole=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_number_of_channels_groups_and_pixels(
    batch: int,
    groups: int,
    per_group: int,
    space: tuple[int, ...],
    layout: str,
    silu: bool,
    whole: bool,
    seed: int,
    in_tiles: Norm,
) -> None:
    assume(
        per_group * torch.Size(space).numel() >= 8
    )  # few values may be almost equal, which no float32 sum tells apart
    tensors = picture(batch, groups * per_group, *space, seed=seed, layout=layout if len(space) == 2 else "")
    exact = there_and_back(reference, [t.double() for t in tensors], groups, silu=silu)
    for found, right in zip(
        there_and_back(triton if whole else in_tiles, tensors, groups, silu=silu), exact, strict=True
    ):
        torch.testing.assert_close(found.double(), right, rtol=0, atol=1e-5 * max(1.0, float(right.abs().max())))


@every_format
@pytest.mark.parametrize("tiles", [False, True], ids=["whole", "tiles"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_parameters_may_be_float32_beside_half_precision(
    dtype: torch.dtype, tiles: bool, layout: str, in_tiles: Norm, as_right_as_torch: Check
) -> None:
    x, weight, bias, grad = picture(2, 12, 5, 6, layout=layout)
    tensors = [x.to(dtype), weight, bias, grad.to(dtype)]
    found = compared(in_tiles if tiles else triton, tensors, 3, as_right_as_torch)
    assert [t.dtype for t in found] == [dtype, dtype, torch.float32, torch.float32]


@every_format
@pytest.mark.parametrize("tiles", [False, True], ids=["whole", "tiles"])
@pytest.mark.parametrize(
    "cut",
    [
        lambda x: x[1:],
        lambda x: x[:, 8:20],
        lambda x: x[:, :, 2:5],
        lambda x: x[:, ::2] if x.is_contiguous() else x[:, :12],
        lambda x: x[:1, :12].expand(3, -1, -1, -1),
    ],
    ids=["pictures", "channels", "rows", "every other channel", "expanded"],
)
def test_evenly_spaced_views_are_read_in_place(
    cut: Callable[[Tensor], Tensor], tiles: bool, layout: str, in_tiles: Norm, as_right_as_torch: Check
) -> None:
    x, weight, bias, grad = (cut(t) if t.ndim > 1 else t for t in picture(3, 24, 7, 6, layout=layout))
    tensors = [x, weight[: x.shape[1]], bias[: x.shape[1]], grad]
    found = compared(in_tiles if tiles else triton, tensors, 3, as_right_as_torch)
    assert all(t.is_contiguous(memory_format=FORMATS[layout]) for t in found[:2])


@every_format
@pytest.mark.parametrize(
    "grad",
    [
        torch.ones(()).expand(2, 12, 5, 6),
        torch.arange(720.0).view(2, 5, 6, 12).movedim(-1, 1),
        torch.ones(2, 12, 5, 12)[..., ::2],
    ],
    ids=["one number", "channels last", "with gaps"],
)
def test_gradients_of_any_strides_are_taken(
    grad: Tensor, layout: str, in_tiles: Norm, as_right_as_torch: Check
) -> None:
    tensors = [*picture(2, 12, 5, 6, layout=layout)[:3], grad]
    for op in (triton, in_tiles):
        found = compared(op, tensors, 3, as_right_as_torch)
        assert found[1].is_contiguous(memory_format=FORMATS[layout])


@pytest.mark.parametrize("tiles", [False, True], ids=["whole", "tiles"])
@every_format
def test_nothing_beside_the_tensors_is_read_or_written(tiles: bool, layout: str, in_tiles: Norm, fence: object) -> None:
    x, weight, bias, grad = picture(2, 36, 7, 5, layout=layout)
    x, grad = (fence.copy(t[:, 3:33]) for t in (x, grad))
    tensors = [x, fence.copy(weight[3:33]), fence.copy(bias[3:33]), grad]
    found = there_and_back(in_tiles if tiles else triton, tensors, 3)
    assert not any(t.isnan().any() for t in found)


@pytest.mark.parametrize("tiles", [False, True], ids=["whole", "tiles"])
@every_format
def test_programs_may_run_in_any_order(tiles: bool, layout: str, in_tiles: Norm, in_orders: Check) -> None:
    tensors = picture(1, 20, 7, 5, layout=layout)
    in_orders(lambda: there_and_back(in_tiles if tiles else triton, tensors, 2))


@pytest.mark.parametrize("tiles", [False, True], ids=["whole", "tiles"])
@every_format
@pytest.mark.parametrize(
    ("dtype", "mean", "scale", "limit"),
    [
        (torch.bfloat16, 5.0, 1.0, 0.03),
        (torch.float16, 20.0, 1.0, 0.004),
        (torch.float16, 0.0, 300.0, 0.004),
        (torch.float32, 300.0, 1.0, 1e-4),
    ],
    ids=["bfloat16, mean 5", "float16, mean 20", "float16, deviation 300", "float32, mean 300"],
)
def test_a_large_mean_or_deviation_takes_no_digits(
    dtype: torch.dtype, mean: float, scale: float, limit: float, layout: str, tiles: bool, in_tiles: Norm
) -> None:
    """Sums of squares in half precision are off by 0.47, by 9.8 and past all numbers; in float32 by 1e-2."""
    x, *_ = (t.to(dtype) for t in picture(2, 20, 9, 7, mean=mean, scale=scale, layout=layout))
    weight, bias = torch.ones(20, dtype=dtype), torch.zeros(20, dtype=dtype)
    exact = reference(x.double(), weight.double(), bias.double(), 2, EPS)
    found = (in_tiles if tiles else triton)(x, weight, bias, 2, EPS)
    assert float((found.double() - exact).abs().max()) < limit


@pytest.mark.parametrize("tiles", [False, True], ids=["whole", "tiles"])
@every_format
def test_statistics_are_exact_where_the_mean_is_300_deviations(tiles: bool, layout: str, in_tiles: Norm) -> None:
    x, weight, bias, _ = picture(2, 20, 9, 7, mean=300.0, layout=layout)
    x[:, :, 0, 0] = 0.0  # that from which the sums of tiles are counted is far from the rest
    _, mean, rstd = group_norm_silu(x, weight, bias, 2, EPS, True, (in_tiles if tiles else triton).table)
    groups = x.double().reshape(2, 2, -1)
    variance = groups.var(-1, correction=0)
    torch.testing.assert_close(mean.double(), groups.mean(-1), rtol=1e-6, atol=0)
    torch.testing.assert_close(rstd.double(), (variance + EPS).rsqrt(), rtol=2e-6, atol=0)


@pytest.mark.parametrize("tiles", [False, True], ids=["whole", "tiles"])
@every_format
def test_the_gradient_of_silu_is_taken_after_weight_and_bias(
    tiles: bool, layout: str, in_tiles: Norm, as_right_as_torch: Check
) -> None:
    x, weight, bias, grad = picture(2, 20, 6, 5, layout=layout)
    tensors = [x, weight * 3 + 1, bias * 2 - 3, grad]
    _, _, gain, _ = compared(in_tiles if tiles else triton, tensors, 2, as_right_as_torch)
    normal = F.group_norm(x, 2)
    share = torch.sigmoid(normal)
    before = (grad * share * (1 + normal * (1 - share)) * normal).sum((0, 2, 3))
    assert float((gain - before).abs().max()) > 1.0


@pytest.mark.parametrize("tiles", [False, True], ids=["whole", "tiles"])
@every_format
def test_equal_pixels_give_the_bias_and_numbers_for_gradients(tiles: bool, layout: str, in_tiles: Norm) -> None:
    _, weight, bias, grad = picture(2, 12, 7, 5, layout=layout)
    x = torch.full_like(grad, 7.3)
    made, *gradients = there_and_back(in_tiles if tiles else triton, [x, weight, bias, grad], 3)
    torch.testing.assert_close(made, F.silu(bias).view(1, -1, 1, 1).expand_as(made), rtol=0, atol=1e-3)
    assert all(t.isfinite().all() for t in gradients)


def test_second_derivatives_are_an_error() -> None:
    x, weight, bias, grad = (t.requires_grad_() for t in picture(1, 8, 4, 4))
    (first,) = torch.autograd.grad(triton(x, weight, bias, 2, EPS), x, grad, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        first.sum().backward()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda x, w, b: (x.double(), w, b), "float64 is none of float16, bfloat16, float32"),
        (lambda x, w, b: (x[..., ::2], w, b), "lie side by side, evenly spaced"),
        (lambda x, w, b: (x[..., :-1], w, b), "lie side by side, evenly spaced"),
        (lambda x, w, b: (x, w.half(), b), "weight is torch.float16, which is neither x's torch.float32"),
        (lambda x, w, b: (x, w, b[:4]), r"bias is \[4\] on cpu, x has 8 channels on cpu"),
        (lambda x, w, b: (x, w, torch.ones(16)[::2]), "bias has gaps: its stride is 2"),
        (lambda x, w, b: (x[:0], w, b), "is empty"),
        (lambda x, w, b: (x[:1, :, :1, :1].repeat(65536, 1, 1, 1), w, b), "no room for more than 65535 pictures"),
    ],
)
def test_what_no_kernel_takes_is_refused_in_words(change: Callable[..., tuple[Tensor, ...]], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        triton(*change(*picture(2, 8, 4, 4)[:3]), 2, EPS)


def test_a_table_without_rows_is_named_in_words(tmp_path: Path) -> None:
    write_rows([], tmp_path / "empty.json")
    op = GroupNormSiLUTriton(table=tmp_path / "empty.json").build(BuildContext())
    reason = str(op.refuses(*picture(2, 8, 4, 4)[:3], 2, EPS))
    assert "no group_norm_sums (contiguous) for sm_80, 32 bits and a width of 8" in reason
