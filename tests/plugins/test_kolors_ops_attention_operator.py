from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kolors_ops import operators
from kolors_ops.attention import op
from kolors_ops.attention.config import AttentionTriton
from kolors_ops.attention.reference import ReferenceAttention, attend, gradients
from kolors_ops.operators import pick_from
from torch import Tensor

from kolors_kernel import BuildContext

triton = AttentionTriton().build(BuildContext())
FAMILIES = ["sm_80", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942"]


def heads(
    queries: int = 5, keys: int = 7, width: int = 16, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, width, generator=draw, dtype=torch.float64) for n in (queries, keys, keys))
    return q.to(dtype), k.to(dtype), v.to(dtype)


def packed() -> tuple[Tensor, Tensor, Tensor]:
    """Views of one product [B, L, 3, A, E]."""
    q, k, v = torch.randn(2, 7, 3, 3, 16, generator=torch.Generator().manual_seed(0)).permute(2, 0, 3, 1, 4)
    return q, k, v


def bias(keys: int = 7) -> Tensor:
    made = torch.linspace(-1, 1, 2 * keys).view(2, 1, 1, keys).clone()
    made[..., 2] = -math.inf
    return made


@pytest.mark.parametrize(
    ("made", "mask"), [(heads, None), (packed, bias()), (lambda: heads(dtype=torch.bfloat16), bias())]
)
def test_both_are_operators_as_torch_wants_them(made: Callable[[], Any], mask: Tensor | None) -> None:
    q, k, v = made()
    out, lse = op.attention(q, k, v, mask, "")
    torch.library.opcheck(op.attention_backward, (torch.ones_like(out), q, k, v, mask, out, lse, ""))
    if q.dtype == torch.float32:
        torch.library.opcheck(op.attention, (*(t.clone().requires_grad_() for t in (q, k, v)), mask, ""))
    else:
        torch.library.opcheck(op.attention, (q, k, v, mask, ""))


@pytest.mark.parametrize("mask", [None, bias()], ids=["none", "bias"])
def test_its_gradients_are_slopes(mask: Tensor | None) -> None:
    leaves = [t.requires_grad_() for t in heads(dtype=torch.float64)]
    assert torch.autograd.gradcheck(lambda *t: op.attention(*t, mask, "")[0], leaves)


def test_the_gradients_of_the_reference_are_autograds() -> None:
    q, k, v = (t.requires_grad_() for t in heads(dtype=torch.float64))
    out, lse = attend(q, k, v, bias())
    grad = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape)
    right = torch.autograd.grad(ReferenceAttention()(q, k, v, bias()), (q, k, v), grad)
    for found, wanted in zip(gradients(grad, q, k, v, bias(), out, lse), right, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-13)
    exact = ((q @ k.mT) / 4 + bias()).exp().sum(-1).log2()
    torch.testing.assert_close(lse, exact, rtol=1e-12, atol=1e-13)


def test_a_gradient_of_a_gradient_is_refused_in_words() -> None:
    q, k, v = (t.requires_grad_() for t in heads())
    (slope,) = torch.autograd.grad(op.attention(q, k, v, None, "")[0].sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives need the op's 'reference'"):
        slope.sum().backward()


@pytest.mark.parametrize("mask", [None, bias()], ids=["none", "bias"])
def test_compiles_whole_and_exports(mask: Tensor | None) -> None:
    class Layer(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            made: Tensor = op.attention(q, k, v, mask, "")[0]
            return made.transpose(1, 2).flatten(2)

    leaves = [t.requires_grad_() for t in packed()]
    wanted = Layer()(*leaves)
    slopes = torch.autograd.grad(wanted.square().sum(), leaves)
    compiled = torch.compile(Layer(), fullgraph=True, backend="aot_eager")
    found = compiled(*leaves)
    assert torch.equal(found, wanted)
    for one, other in zip(torch.autograd.grad(found.square().sum(), leaves), slopes, strict=True):
        torch.testing.assert_close(one, other)
    plain = tuple(t.detach() for t in leaves)
    exported = torch.export.export(Layer(), plain)
    assert "kolors.attention.default" in str(exported.graph)
    assert torch.equal(exported.module()(*plain), wanted)


@pytest.mark.parametrize("made", [heads, packed])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_heads_lie_side_by_side_in_the_result_and_the_gradients(made: Callable[[], Any], device: str) -> None:
    q, k, v = (t.to(device) for t in made())
    out, lse = op.attention(q, k, v, None, "")
    for t in (out, *op.attention_backward(out, q, k, v, None, out, lse, "")):
        assert t.transpose(1, 2).is_contiguous()
    assert lse.is_contiguous()
    assert lse.dtype == torch.float32


def test_triton_is_not_imported_before_a_launch() -> None:
    code = (
        "import sys, torch; from kolors_ops.attention.op import TritonAttention, attention;"
        "x = torch.randn(1, 1, 4, 16, requires_grad=True); attention(x, x, x, None, '')[0].sum().backward();"
        "TritonAttention().refuses(x, x, x); assert 'triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def able(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused for other reasons than a CPU."""
    monkeypatch.setattr(operators, "INTERPRETED", True)
    monkeypatch.setattr(operators, "INSTALLED", True)


Changed = Callable[[Tensor, Tensor, Tensor], tuple[Any, ...]]


@pytest.mark.usefixtures("able")
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (lambda q, k, v: (q.double(), k.double(), v.double()), "float64 is none of float16, bfloat16, float32"),
        (lambda q, k, v: (q, k.half(), v), "must have one dtype"),
        (lambda q, k, v: (q, k, v[:, :, :3]), "do not go with"),
        (lambda q, k, v: (q, k[:, :1], v[:, :1]), "do not go with"),
        (lambda q, k, v: (q[0], k[0], v[0]), "do not go with"),
        (lambda q, k, v: (q, k[:, :, :0], v[:, :, :0]), "nothing to attend"),
        (lambda q, k, v: (q, k.to("meta"), v.to("meta")), "are on cpu, meta and meta"),
        (lambda q, k, v: (q, k, v.mT.contiguous().mT), "of v are not side by side"),
        (lambda q, k, v: tuple(t.repeat(1, 1, 1, 9) for t in (q, k, v)), "a width of 144"),
        (lambda q, k, v: tuple(t[:1, :1].expand(70000, 1, -1, -1) for t in (q, k, v)), "no room for more than 65535"),
        (lambda q, k, v: (q, k, v, torch.zeros(5, 7)), "keys alone, as [2 or 1, 1, 1, 7]; it is [5, 7]"),
        (lambda q, k, v: (q, k, v, torch.zeros(2, 3, 1, 7)), "keys alone"),
        (lambda q, k, v: (q, k, v, torch.zeros(3, 1, 1, 7)), "keys alone"),
        (lambda q, k, v: (q, k, v, torch.zeros(8)), "keys alone"),
        (lambda q, k, v: (q, k, v, torch.zeros(7, device="meta")), "the mask is on meta"),
        (lambda q, k, v: (q, k, v, torch.zeros(7, requires_grad=True)), "gives a mask no gradient"),
    ],
)
def test_refuses_in_words(changed: Changed, said: str) -> None:
    call = changed(*heads())
    assert said in str(triton.refuses(*call))
    with pytest.raises(ValueError, match="attention 'triton' refuses: "):
        triton(*call)


@pytest.mark.usefixtures("able")
def test_takes_what_it_says() -> None:
    q, k, v = heads()
    masks = [None, torch.zeros(7), torch.zeros(1, 7), torch.zeros(1), bias(), bias().mT.contiguous().mT]
    assert [triton.refuses(q, k, v, mask) for mask in masks] == [None] * len(masks)
    assert triton.refuses(*packed()) is None
    with torch.no_grad():
        assert triton.refuses(q, k, v, torch.zeros(7, requires_grad=True)) is None
    with pytest.raises(ValueError, match=r"floating, not torch\.bool"):
        triton(q, k, v, torch.ones(7, dtype=torch.bool))


def test_on_a_cpu_it_is_refused_in_words() -> None:
    if not operators.INTERPRETED:
        assert "on a CPU" in str(triton.refuses(*heads()))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_table_has_a_row_for_all_that_models_ask(family: str, dtype: torch.dtype) -> None:
    pytest.importorskip("triton")
    pick = pick_from("", family)
    planned = [launch for sample in op.samples(dtype) for launch in sample.plan(pick)]
    assert {launch.kernel.__name__ for launch in planned} == set(op.KERNELS)


def plan(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Any:
    pytest.importorskip("triton")
    out, lse = op.attention(q, k, v, mask, "")
    (launch,) = op.plan_forward(q, k, v, mask, out, lse, pick_from("", "sm_80"))
    return launch


def test_masks_are_compiled_in_only_where_blocks_are_not_whole() -> None:
    whole, ragged = (
        plan(*(torch.empty(1, 2, n, 64, dtype=torch.half, device="meta") for n in (256, keys, keys)))
        for keys in (256, 77)
    )
    assert whole.arguments["EVEN_QUERIES"] and whole.arguments["EVEN_KEYS"]
    assert whole.row.case == "even"
    assert ragged.arguments["EVEN_QUERIES"] and not ragged.arguments["EVEN_KEYS"]
    assert ragged.row.case == ""


def test_strides_are_given_in_what_is_loaded_at_once_or_one_by_one() -> None:
    q, k, v = (t.to("meta") for t in packed())
    assert plan(q, k, v).arguments["UNIT"] == 8
    assert plan(q, k, v).arguments["q_row"] * 8 == q.stride(2)
    odd = torch.empty(2, 3, 7, 17, device="meta")[..., :16]
    assert plan(q, odd, v).arguments["UNIT"] == 1
    assert plan(q, odd, v).arguments["k_row"] == 17
