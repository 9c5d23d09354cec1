from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kolors_kernel.errors import RunError
from kolors_weights import packing
from kolors_weights.packing import PackedConv2d, PackedLinear, pack, unpack


class Net(nn.Module):
    """A linear layer, a strided, dilated, grouped convolution, and one without bias deeper inside."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 8, 3, stride=2, padding=(1, 2), dilation=(1, 2), groups=2)
        self.inner = nn.ModuleList([nn.Linear(8, 24), nn.Linear(24, 5, bias=False)])

    def forward(self, x: Tensor) -> Tensor:
        rows = self.conv(x).flatten(2).transpose(1, 2)
        out: Tensor = self.inner[1](self.inner[0](rows))
        return out


def net(dtype: torch.dtype = torch.float32) -> Net:
    torch.manual_seed(0)
    return Net().to(dtype)


def picture(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 6, 9, 12, generator=torch.Generator().manual_seed(1)).to(dtype)


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_net_computes_what_float64_does(dtype: torch.dtype) -> None:
    ours, x = net(dtype), picture(dtype)
    wanted, plain = copy.deepcopy(ours).double()(x.double()), ours(x)
    assert pack(ours) == "packed 1 convolution and 2 linear layers for oneDNN"
    assert [type(m) for m in (ours.conv, *ours.inner)] == [PackedConv2d, PackedLinear, PackedLinear]
    found = ours(x)
    assert found.dtype == dtype
    assert error(found, wanted) <= max(1.1 * error(plain, wanted), 1e-6)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_state_dict_is_that_of_the_plain_net(dtype: torch.dtype) -> None:
    ours, plain = net(dtype), net(dtype)
    pack(ours)
    found, wanted = ours.state_dict(), plain.state_dict()
    assert list(found) == list(wanted)
    assert all(torch.equal(found[key], wanted[key]) and not found[key].is_mkldnn for key in wanted)
    unpack(ours)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), plain.parameters(), strict=True))
    assert torch.equal(ours(picture(dtype)), plain(picture(dtype)))


@torch.no_grad()
@pytest.mark.parametrize("assign", [False, True])
def test_loading_into_a_packed_net_packs_anew(assign: bool) -> None:
    ours, other = net(), net()
    for parameter in other.parameters():
        parameter.mul_(2)
    pack(ours)
    ours.load_state_dict(other.state_dict(), assign=assign)
    assert error(ours(picture()), other(picture())) <= 1e-6
    with pytest.raises(RuntimeError, match=r"(?s)inner\.0\.weight.*size mismatch|size mismatch.*inner\.0\.weight"):
        ours.load_state_dict({**other.state_dict(), "inner.0.weight": torch.zeros(2, 3)}, assign=assign)
    with pytest.raises(RuntimeError, match=r"(?s)Missing.*conv\.bias.*Unexpected.*inner\.1\.bias"):
        state = {**other.state_dict(), "inner.1.bias": torch.zeros(5)}
        del state["conv.bias"]
        ours.load_state_dict(state, assign=assign)


@torch.no_grad()
def test_a_packed_net_is_copied_pickled_and_cast() -> None:
    ours = net()
    pack(ours)
    wanted = ours(picture())
    for made in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(made.conv) is PackedConv2d
        assert torch.equal(made(picture()), wanted)
    half = copy.deepcopy(ours).to(torch.bfloat16)
    assert half(picture(torch.bfloat16)).dtype == torch.bfloat16
    assert torch.equal(ours(picture()), wanted)


def test_training_a_packed_net_is_a_clear_error() -> None:
    ours = net()
    pack(ours)
    with pytest.raises(RunError, match="does not train; unpack the module first"):
        ours.train()
    with pytest.raises(RunError, match="passes no gradients; unpack the module first"):
        ours(picture().requires_grad_())
    ours.eval()
    assert not ours(picture()).requires_grad
    unpack(ours)
    ours.train()(picture().requires_grad_()).sum().backward()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("last", [False, True])
def test_a_convolution_of_one_pixel_is_packed_as_a_product(dtype: torch.dtype, last: bool) -> None:
    plain = nn.Conv2d(6, 5, 1).to(dtype)
    x = picture(dtype).to(memory_format=torch.channels_last if last else torch.contiguous_format)
    ours = nn.Sequential(copy.deepcopy(plain))
    pack(ours)
    found = ours(x)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert error(found, plain(x)) <= {torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
    assert torch.equal(ours.state_dict()["0.weight"], plain.weight)


class Louder(nn.Linear):
    """A stranger's layer."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_says_what_is_not_packed_and_why() -> None:
    hooked = nn.Linear(2, 2)
    hooked.register_forward_hook(lambda module, taken, given: None)
    ours = nn.Sequential(Louder(2, 2), nn.Linear(2, 2), hooked, nn.Conv2d(2, 2, 3, padding="same"))
    said = pack(ours)
    assert said.startswith(
        "packed 1 linear layers for oneDNN; 1 not: Louder is another class than torch's own; 1 not: "
    )
    assert "hooks" in said and "zeros" in said
    assert [type(m) for m in ours] == [Louder, PackedLinear, nn.Linear, nn.Conv2d]
    assert pack(net(torch.float64)) == (
        "nothing is packed; 3 not: weights of torch.float64 cannot be packed, only float32 and bfloat16"
    )
    with torch.device("meta"):
        assert "'meta'" in pack(Net())


@pytest.fixture
def a_machine_that_rounds(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As a CPU with AMX does: under the setting "bf16" the operands are rounded to bfloat16 first."""
    right = torch.ops.mkldnn._linear_pointwise

    def rounding(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
        if torch.get_float32_matmul_precision() == "medium" and x.dtype == torch.float32:
            x = x.bfloat16().float()
        out: Tensor = right(x, weight, bias, *rest)
        return out

    packing._why_rounded.cache_clear()
    before = torch.get_float32_matmul_precision()
    with monkeypatch.context() as patch:
        patch.setattr(torch.ops.mkldnn, "_linear_pointwise", rounding)
        yield
    torch.set_float32_matmul_precision(before)
    packing._why_rounded.cache_clear()


@torch.no_grad()
def test_float32_is_never_rounded_unseen(a_machine_that_rounds: None) -> None:
    ours, other, x = net(), net(), picture()
    assert "2 linear" in pack(ours)
    wanted = ours(x)
    torch.set_float32_matmul_precision("medium")
    with pytest.raises(RunError, match=r"oneDNN rounds float32 here, 'matmul' is off by .e-0[234]"):
        ours(x)
    assert pack(other).startswith("packed 1 convolution layers for oneDNN; 2 not: oneDNN rounds float32 here")
    torch.set_float32_matmul_precision("highest")
    assert torch.equal(ours(x), wanted)


def test_packing_keeps_no_second_copy() -> None:
    ours = nn.Sequential(*(nn.Linear(64, 64) for _ in range(8)))
    alive: list[int] = []

    def count() -> int:
        gc.collect()
        return sum(type(o) is nn.Parameter and o.numel() == 64 * 64 for o in gc.get_objects())

    before = count()
    right = packing.PackedLinear.take

    class Counting(PackedLinear):
        def take(self, plain: nn.Linear) -> None:
            alive.append(before - count())
            right(self, plain)

    packing._PACKED[nn.Linear] = Counting
    try:
        pack(ours)
    finally:
        packing._PACKED[nn.Linear] = PackedLinear
    assert alive == list(range(8))
    assert count() == before - 8
