from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from kolors_ops.group_norm_silu.config import GroupNormSiLUAuto, GroupNormSiLUTriton
from kolors_ops.group_norm_silu.op import group_norm_silu, group_norm_silu_backward, samples
from kolors_ops.group_norm_silu.plans import format_of, strides_of
from kolors_ops.group_norm_silu.reference import ReferenceGroupNormSiLU, gradient, norm_and_statistics
from kolors_ops.operators import INTERPRETED, pick_from
from kolors_ops.table import FAMILIES, SHIPPED, read_rows
from torch import Tensor

from kolors_kernel import BuildContext

REST = (3, 1e-5, True, "")
CASES: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "padded": lambda x: torch.nn.functional.pad(x, (0, 2, 0, 1))[..., :-1, :-2],
    "channels of more": lambda x: torch.cat((x, x), dim=1)[:, 3:15],
    "one dimension": lambda x: x.flatten(2),
}
every_case = pytest.mark.parametrize("case", CASES)


def picture(case: str = "contiguous", dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 12, 5, 4, generator=draw)
    weight, bias = torch.randn(12, generator=draw), torch.randn(12, generator=draw)
    return CASES[case](x.to(dtype)), weight.to(dtype), bias.to(dtype)


@every_case
def test_both_operators_are_sound(case: str) -> None:
    x, weight, bias = picture(case)
    leaves = [t.clone(memory_format=torch.preserve_format).requires_grad_() for t in (weight, bias)]
    torch.library.opcheck(group_norm_silu, (x.detach().requires_grad_(), *leaves, *REST))
    out, mean, rstd = group_norm_silu(x, weight, bias, *REST)
    torch.library.opcheck(group_norm_silu_backward, (torch.randn_like(out), x, weight, bias, mean, rstd, True, ""))


@every_case
@pytest.mark.parametrize("silu", [True, False])
def test_the_operator_is_its_definition_and_so_are_its_gradients(case: str, silu: bool) -> None:
    found, wanted = [], []
    for into, op in ((found, lambda *a: group_norm_silu(*a, silu, "")[0]), (wanted, None)):
        x, weight, bias = (t.detach().requires_grad_() for t in picture(case))
        made = op(x, weight, bias, 3, 1e-5) if op else ReferenceGroupNormSiLU()(x, weight, bias, 3, 1e-5, silu=silu)
        into += [made, *torch.autograd.grad((made * torch.linspace(-1, 1, made.shape[-1])).sum(), (x, weight, bias))]
    for ours, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("silu", [True, False])
def test_the_written_gradient_is_that_of_autograd(silu: bool) -> None:
    x, weight, bias = (t.double().requires_grad_() for t in picture())
    out, mean, rstd = norm_and_statistics(x, weight, bias, 3, 1e-5, silu=silu)
    grad = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out)
    right = torch.autograd.grad(out, (x, weight, bias), grad)
    with torch.no_grad():
        for ours, theirs in zip(gradient(grad, x, weight, bias, mean, rstd, silu=silu), right, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@every_case
def test_the_memory_format_is_kept_without_gaps(case: str) -> None:
    x, weight, bias = picture(case)
    out, mean, rstd = group_norm_silu(x.requires_grad_(), weight, bias, *REST)
    (below,) = torch.autograd.grad(out.sum(), x)
    like = (
        x.detach().contiguous()
        if format_of(x) == "contiguous"
        else x.detach().contiguous(memory_format=torch.channels_last)
    )
    assert out.stride() == below.stride() == like.stride()
    assert mean.dtype == rstd.dtype == torch.float32
    assert mean.shape == rstd.shape == (2, 3)
    assert not mean.requires_grad


@every_case
def test_it_compiles_and_exports_whole(case: str) -> None:
    x, weight, bias = picture(case)

    class Norm(torch.nn.Module):
        def forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            made: Tensor = group_norm_silu(x, weight, bias, *REST)[0]
            return made

    right = Norm()(x, weight, bias)
    torch.compiler.reset()
    compiled = torch.compile(Norm(), fullgraph=True, backend="aot_eager")
    leaf = x.detach().requires_grad_()
    made = compiled(leaf, weight, bias)
    assert torch.equal(made, right)
    assert made.stride() == right.stride()
    assert torch.autograd.grad(made.sum(), leaf)[0].shape == x.shape
    exported = torch.export.export(Norm(), (x, weight, bias))
    assert "kolors.group_norm_silu.default" in str(exported.graph)
    assert torch.equal(exported.module()(x, weight, bias), right)


@pytest.mark.skipif(INTERPRETED, reason="the kernels run on CPUs where they are interpreted")
def test_on_a_cpu_the_kernels_refuse_in_words_and_auto_goes_on() -> None:
    x, weight, bias = picture()
    triton = GroupNormSiLUTriton().build(BuildContext())
    with pytest.raises(ValueError, match="'triton' refuses: the tensors are on a CPU"):
        triton(x, weight, bias, 3, 1e-5)
    assert GroupNormSiLUAuto().build(BuildContext()).refuses(x, weight, bias, 3, 1e-5) is None


def test_triton_is_not_imported_before_a_launch() -> None:
    program = """
import sys, torch
from kolors_ops.group_norm_silu.config import GroupNormSiLUTriton
from kolors_ops.group_norm_silu.op import group_norm_silu, samples
from kolors_kernel import BuildContext
GroupNormSiLUTriton().build(BuildContext())
x, weight = torch.randn(2, 4, 3, 3, requires_grad=True), torch.ones(4)
group_norm_silu(x, weight, weight, 2, 1e-5, True, "")[0].sum().backward()
list(samples(torch.bfloat16))
assert "triton" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


@pytest.mark.parametrize(
    ("view", "strides"),
    [
        (lambda x: x, (240, 20, 1)),
        (lambda x: x.contiguous(memory_format=torch.channels_last), (240, 1, 12)),
        (lambda x: x[:, :, 1:4], (240, 20, 1)),
        (lambda x: x[:, ::2], (240, 40, 1)),
        (lambda x: x[..., 1:], None),
        (lambda x: x[..., ::2], None),
        (lambda x: x.contiguous(memory_format=torch.channels_last)[..., ::2], (240, 1, 24)),
        (lambda x: x.contiguous(memory_format=torch.channels_last)[:, ::2], None),
        (lambda x: x[:, :1], (240, 1, 1)),
        (lambda x: x[:, :, 2, 3], (240, 20, 1)),
    ],
)
def test_views_with_evenly_spaced_pixels_are_seen_as_such(
    view: Callable[[Tensor], Tensor], strides: tuple[int, ...] | None
) -> None:
    assert strides_of(view(torch.empty(2, 12, 5, 4))) == strides


@pytest.mark.parametrize(("bits", "dtype"), [(16, torch.bfloat16), (32, torch.float32)])
@pytest.mark.parametrize("family", sorted(set(FAMILIES.values())))
def test_every_row_is_used_by_a_sample_and_every_sample_has_its_rows(
    family: str, bits: int, dtype: torch.dtype
) -> None:
    pytest.importorskip("triton")
    (file,) = (path for path in SHIPPED if path.parent.name == "group_norm_silu")
    rows = [row for row in read_rows(file) if (row.family, row.bits) == (family, bits)]
    used = [launch.row for sample in samples(dtype) for launch in sample.plan(pick_from("", family))]
    assert [row for row in rows if row not in used] == []


def test_groups_that_fit_a_program_take_one_launch_and_others_three() -> None:
    pytest.importorskip("triton")
    found = {sample.shape: len(sample.plan(pick_from("", "sm_90"))) for sample in samples(torch.bfloat16)}
    assert found["320@128x128 contiguous"] == found["2560@32x32 channels_last backward"] == 3
    assert found["1280@16x16 contiguous"] == found["1280@8x8 channels_last backward"] == 1
    assert found["1280@16x16 contiguous backward"] == 3
