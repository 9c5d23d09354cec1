"""The linear layer of integers as an operator of torch, where no kernel can run: schema, compiling, refusals."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from kolors_ops.operators import INSTALLED, Sample
from kolors_ops.quantized_linear.config import (
    QuantizedLinearAuto,
    QuantizedLinearReference,
    QuantizedLinearTorch,
    QuantizedLinearTriton,
)
from kolors_ops.quantized_linear.op import KERNELS, quantized_linear, samples
from kolors_ops.table import SHIPPED, bits_of, read_rows, table_at
from torch import Tensor, nn

from kolors_kernel import BuildContext
from kolors_weights.quantizing import QuantizedLinear, compute_by, dequantize, quantize, quantize_linears

FORMS = [(8, None), (4, None), (4, 16)]
every_form = pytest.mark.parametrize(("bits", "group"), FORMS)


def layer(bits: Any, group: int | None, *, width: int = 64, height: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(height, width, generator=draw)
    return *quantize(weight, bits, group=group), torch.randn(height, generator=draw)


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@every_form
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_finds_nothing_wrong_with_the_operator(
    bits: int, group: int | None, biased: bool, dtype: torch.dtype
) -> None:
    weight, scale, bias = layer(bits, group)
    for x in (rows(2, 3, 64), rows(3, 80)[:, :64]):
        torch.library.opcheck(quantized_linear, (x.to(dtype), weight, scale, bias if biased else None, ""))


class Net(nn.Module):
    """Two layers of integers around a nonlinearity."""

    def __init__(self, group: int | None) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 32), nn.Linear(32, 8, bias=False)
        quantize_linears(self, 4 if group else 8, group=group)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def operator(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    found: Tensor = quantized_linear(x, weight, scale, bias, "")
    return found


@pytest.mark.parametrize("group", [None, 16])
def test_a_net_of_operators_compiles_whole_and_is_exported(group: int | None) -> None:
    net, x = Net(group).eval(), rows(5, 64)
    compute_by(net, operator)
    with torch.no_grad():
        wanted = net(x)
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), wanted)
        exported = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("rows", min=2)},))
        assert [str(node.target) for node in exported.graph.nodes].count("kolors.quantized_linear.default") == 2
        torch.testing.assert_close(exported.module()(rows(7, 64)), net(rows(7, 64)))


@pytest.mark.parametrize("group", [None, 16])
def test_every_quantised_layer_computes_by_the_op_it_is_given(group: int | None) -> None:
    net, x, calls = Net(group), rows(5, 64), []
    wanted = net(x)

    def counted(*arguments: Any) -> Tensor:
        calls.append(arguments)
        return QuantizedLinearTorch().build(BuildContext())(*arguments)

    compute_by(net, counted)
    assert torch.equal(net(x), wanted)
    assert [call[3] is None for call in calls] == [False, True]


@every_form
def test_the_reference_is_the_product_with_what_the_integers_stand_for(bits: int, group: int | None) -> None:
    weight, scale, bias = layer(bits, group)
    x = rows(2, 3, 64).double()
    values = torch.empty(10, 64, dtype=torch.float64)
    for o in range(10):
        for i in range(64):
            byte = int(weight[o, i if bits == 8 else i // 2])
            whole = byte if bits == 8 else byte >> 4 if i % 2 == 0 else (byte & 15) - 16 * (byte & 15 > 7)
            values[o, i] = whole * float(scale[o, i // group] if group else scale[o])
    assert torch.equal(dequantize(weight, scale, 64, torch.float64), values)
    found = QuantizedLinearReference().build(BuildContext())(x, weight, scale, bias.double())
    torch.testing.assert_close(found, x @ values.T + bias.double(), rtol=1e-12, atol=1e-12)


@every_form
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_reference_errs_at_most_twice_as_much_as_torch(bits: int, group: int | None, dtype: torch.dtype) -> None:
    weight, scale, bias = layer(bits, group)
    x, bias = rows(9, 64).to(dtype), bias.to(dtype)
    reference, torchs = (c.build(BuildContext()) for c in (QuantizedLinearReference(), QuantizedLinearTorch()))
    exact = reference(x.double(), weight, scale, bias.double())
    ours, theirs = (float((op(x, weight, scale, bias).double() - exact).abs().max()) for op in (reference, torchs))
    assert ours <= 2 * theirs
    assert theirs <= 4 * torch.finfo(dtype).eps * float(exact.abs().max())


@pytest.mark.parametrize("config", [QuantizedLinearReference(), QuantizedLinearTorch(), QuantizedLinearAuto()])
def test_the_gradient_goes_back_to_x_where_there_is_no_kernel(config: Any) -> None:
    weight, scale, _ = layer(4, 16)
    x = rows(3, 64).double().requires_grad_()
    op = config.build(BuildContext())
    assert torch.autograd.gradcheck(lambda x: op(x, weight, scale, None), (x,))


@pytest.mark.skipif(not INSTALLED, reason="needs triton")
def test_on_a_cpu_the_kernels_refuse_in_words_and_auto_says_so() -> None:
    weight, scale, bias = layer(8, None)
    with pytest.raises(ValueError, match="quantized_linear 'triton' refuses: the tensors are on a CPU"):
        QuantizedLinearTriton().build(BuildContext())(rows(3, 64), weight, scale, bias)
    auto: Any = QuantizedLinearAuto().build(BuildContext())
    plain = QuantizedLinear(weight, scale, bias)
    assert torch.equal(auto(rows(3, 64), weight, scale, bias), plain(rows(3, 64)))
    assert auto.report().startswith("torch (passed over: triton: the tensors are on a CPU")


def test_nothing_imports_triton_before_a_launch() -> None:
    code = (
        "import sys, torch; from kolors_ops.quantized_linear import op; op.TritonQuantizedLinear();"
        "op.quantized_linear(torch.ones(2, 4), torch.ones(3, 4, dtype=torch.int8), torch.ones(3), None, '');"
        "assert not any(name.partition('.')[0] == 'triton' for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(not INSTALLED, reason="needs triton")
def test_every_row_of_the_table_is_used_by_a_sample_and_splits_the_columns() -> None:
    (file,) = (path for path in SHIPPED if path.parent.name == "quantized_linear")
    table, used = table_at(""), set()
    for family in sorted({row.family for row in read_rows(file)}):
        for dtype in (torch.float32, torch.bfloat16):
            for sample in samples(dtype):
                used |= {row_of(table, family, sample)}
    assert used == {row.model_dump_json() for row in read_rows(file)}


def row_of(table: Any, family: str, sample: Sample) -> str:
    def pick(kernel: str, x: Tensor, width: int, case: str = "") -> Any:
        return table.need(kernel, family, bits_of(x), width, case)

    (launch,) = sample.plan(pick)
    assert launch.kernel.__name__ in KERNELS
    arguments, blocks = launch.arguments, launch.row.blocks
    assert arguments["WIDTH"] % blocks["BLOCK_I"] == arguments["GROUP"] % blocks["BLOCK_I"] == 0
    assert launch.grid[0] * blocks["BLOCK_R"] >= arguments["R"] > (launch.grid[0] - 1) * blocks["BLOCK_R"]
    assert launch.grid[1] * blocks["BLOCK_O"] >= arguments["HEIGHT"] > (launch.grid[1] - 1) * blocks["BLOCK_O"]
    return str(launch.row.model_dump_json())
