from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kolors_ops.add_layer_norm.config import AddLayerNormTriton
from kolors_ops.add_layer_norm.op import add_layer_norm, layer_norm, layer_norm_backward
from kolors_ops.add_layer_norm.op import samples as add_layer_norm_samples
from kolors_ops.operators import INTERPRETED, Sample, pick_from
from kolors_ops.rms_norm.config import RMSNormTriton
from kolors_ops.rms_norm.op import rms_norm, rms_norm_backward
from kolors_ops.rms_norm.op import samples as rms_norm_samples
from kolors_ops.rotary.config import RotaryTriton
from kolors_ops.rotary.op import rotary
from kolors_ops.rotary.op import samples as rotary_samples
from kolors_ops.table import FAMILIES, table_at
from torch import Tensor

from kolors_kernel import BuildContext

EPS = 1e-5


def laid_out(layout: str, *shape: int) -> Tensor:
    """Random numbers of this shape: without gaps, rows with gaps between them, or one row after the other."""
    wide = torch.randn(*shape[:-1], shape[-1] + 3)
    if layout == "transposed":
        return torch.randn(*shape[-2::-1], shape[-1]).transpose(0, -2)
    return wide[..., 2:-1] if layout == "padded" else wide[..., 3:].contiguous()


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(*shape).add(0.5).to(dtype)


def turns_of(rows: int, half: int) -> Tensor:
    angles = torch.randn(rows, half)
    return torch.polar(torch.ones_like(angles), angles)


def calls(x: Tensor) -> dict[str, tuple[Any, list[Any]]]:
    """Every operator with arguments for rows, or heads, x [2, 3, 8]."""
    more, weight, bias = torch.randn_like(x), ones(8, dtype=x.dtype), ones(8, dtype=x.dtype)
    mean, rstd = ones(2, 3), ones(2, 3)
    return {
        "add_layer_norm": (add_layer_norm, [x, more, weight, bias, EPS, ""]),
        "layer_norm": (layer_norm, [x, weight, bias, EPS, ""]),
        "layer_norm_backward": (layer_norm_backward, [more, None, x, weight, mean, rstd, ""]),
        "layer_norm_backward beside": (layer_norm_backward, [more, x, x, weight, mean, rstd, ""]),
        "rms_norm": (rms_norm, [x, weight, EPS, ""]),
        "rms_norm_backward": (rms_norm_backward, [more, x, weight, rstd, ""]),
        "rotary": (rotary, [x, turns_of(2, 4), False, ""]),
        "rotary back": (rotary, [x, turns_of(2, 4), True, ""]),
    }


NAMES = list(calls(torch.zeros(2, 3, 8)))


@pytest.mark.parametrize("layout", ["contiguous", "padded", "transposed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_torch_takes_the_operators_for_well_made(name: str, dtype: torch.dtype, layout: str) -> None:
    op, arguments = calls(laid_out(layout, 2, 3, 8).to(dtype))[name]
    if "backward" not in name:
        for t in arguments:
            if isinstance(t, Tensor) and t.is_floating_point():
                t.requires_grad_()
    torch.library.opcheck(op, tuple(arguments))


@pytest.mark.parametrize("layout", ["contiguous", "padded", "transposed"])
@pytest.mark.parametrize("name", NAMES)
def test_results_have_no_gaps_and_are_not_what_was_given(name: str, layout: str) -> None:
    op, arguments = calls(laid_out(layout, 2, 3, 8))[name]
    found = op(*arguments)
    given = {t.data_ptr() for t in arguments if isinstance(t, Tensor)}
    for t in [found] if isinstance(found, Tensor) else found:
        assert t.is_contiguous()
        assert t.data_ptr() not in given


def normed(x: Tensor, more: Tensor, weight: Tensor, bias: Tensor, turns: Tensor) -> Tensor:
    """All of the operators in one."""
    total, out, _, _ = add_layer_norm(x, more, weight, bias, EPS, "")
    alone, _, _ = layer_norm(total * 2, weight, bias, EPS, "")
    root, _ = rms_norm(out + alone, weight, EPS, "")
    return rotary(root, turns, False, "") + total


@pytest.fixture
def arguments() -> list[Tensor]:
    return [torch.randn(2, 3, 8), torch.randn(2, 3, 8), ones(8), ones(8), turns_of(2, 4)]


@pytest.mark.slow
def test_a_whole_graph_compiles_and_its_gradients_are_the_same(arguments: list[Tensor]) -> None:
    def gradients(function: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        leaves = [t.clone().requires_grad_() for t in arguments[:4]]
        return torch.autograd.grad(function(*leaves, arguments[4]).square().sum(), leaves)

    compiled = torch.compile(normed, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), normed(*arguments))
    for one, other in zip(gradients(compiled), gradients(normed), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.slow
def test_a_whole_graph_is_exported(arguments: list[Tensor]) -> None:
    class Module(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> Tensor:
            return normed(*tensors)

    exported = torch.export.export(Module(), tuple(arguments))
    assert torch.equal(exported.module()(*arguments), normed(*arguments))
    names = {str(node.target) for node in exported.graph.nodes}
    assert {f"kolors.{name}.default" for name in ("add_layer_norm", "layer_norm", "rms_norm", "rotary")} <= names


def test_only_what_is_used_is_gone_back_through() -> None:
    x, more, weight, bias = torch.randn(2, 3, 8), torch.randn(2, 3, 8), ones(8), ones(8)
    leaves = [t.requires_grad_() for t in (x, more, weight, bias)]
    total, _, _, _ = add_layer_norm(*leaves, EPS, "")
    grads = torch.autograd.grad(total.sum(), leaves, allow_unused=True)
    assert [None if g is None else float(g.sum()) for g in grads] == [48, 48, None, None]


@pytest.mark.parametrize("name", ["layer_norm", "add_layer_norm", "rms_norm"])
def test_a_second_derivative_is_an_error(name: str) -> None:
    op, arguments = calls(torch.randn(2, 3, 8).requires_grad_())[name]
    out = op(*arguments)[0 if "add" not in name else 1]
    (grad,) = torch.autograd.grad(out.square().sum(), arguments[0], create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives need the op's 'reference'"):
        torch.autograd.grad(grad.sum(), arguments[0])


@pytest.mark.skipif(INTERPRETED, reason="the interpreter runs kernels on CPUs")
def test_on_a_cpu_kernels_refuse_in_words() -> None:
    x, weight = torch.randn(2, 3, 8), ones(8)
    context = BuildContext()
    every: list[tuple[Any, tuple[Any, ...]]] = [
        (AddLayerNormTriton().build(context), (x, x, weight, weight, EPS)),
        (RMSNormTriton().build(context), (x, weight, EPS)),
        (RotaryTriton().build(context), (x, turns_of(2, 4))),
    ]
    for op, arguments in every:
        reason = op.refuses(*arguments)
        assert "on a CPU" in reason or "triton is not installed" in reason
        with pytest.raises(ValueError, match=f"'triton' refuses: {reason[:12]}"):
            op(*arguments)


def test_triton_is_not_imported_before_a_launch() -> None:
    code = """
import sys, torch
from kolors_ops.add_layer_norm.op import add_layer_norm
from kolors_ops.rms_norm.op import rms_norm
from kolors_ops.rotary.op import rotary
x, weight = torch.randn(2, 3, 8), torch.ones(8)
_, out, _, _ = add_layer_norm(x.requires_grad_(), x, weight, weight, 1e-5, "")
out, _ = rms_norm(out, weight, 1e-5, "")
rotary(out, torch.ones(2, 4, dtype=torch.complex64), False, "").sum().backward()
assert "triton" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={"PATH": "", "TRITON_INTERPRET": "0"}, timeout=120)


@pytest.mark.parametrize("family", sorted(set(FAMILIES.values())))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("samples", "prefix"),
    [(add_layer_norm_samples, "layer_norm_"), (rms_norm_samples, "rms_norm_"), (rotary_samples, "rotary_")],
)
def test_every_row_of_the_table_is_planned_by_a_sample(
    samples: Callable[[torch.dtype], list[Sample]], prefix: str, dtype: torch.dtype, family: str
) -> None:
    pytest.importorskip("triton")
    launches = [launch for sample in samples(dtype) for launch in sample.plan(pick_from("", family))]
    used = {launch.row.model_dump_json() for launch in launches}
    there = [row for row in table_at("").rows if row.kernel.startswith(prefix) and row.family == family]
    assert used == {row.model_dump_json() for row in there if row.bits == 8 * dtype.itemsize}
    assert all(launch.grid[0] and set(launch.options()) > {"num_warps", "num_stages"} for launch in launches)
