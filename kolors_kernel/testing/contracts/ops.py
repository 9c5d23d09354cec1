"""The contracts of the ops: each against its formula in float64, forward and backward, at odd sizes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

from kolors_kernel.component import ComponentConfig
from kolors_kernel.kinds import (
    AddLayerNormConfig,
    AttentionConfig,
    GEGLUConfig,
    GroupNormSiLUConfig,
    QuantizedLinearConfig,
    RMSNormConfig,
    RotaryConfig,
)
from kolors_kernel.testing.contracts.component import ComponentContract

C = TypeVar("C", bound=ComponentConfig)
TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-5, torch.bfloat16: 4e-2}
"""Of the largest value; float64 leaves room for implementations that compute in float32."""


class Called:
    """An op that is called with arguments in another order and with settings, its results side by side."""

    def __init__(self, op: Any, order: Callable[..., tuple[Any, ...]] = lambda *args: args, **settings: Any) -> None:
        self.op, self.order, self.settings = op, order, settings

    def __call__(self, *args: Any) -> Tensor:
        """Do the op."""
        found = self.op(*self.order(*args), **self.settings)
        return found if isinstance(found, Tensor) else torch.cat(found, dim=-1)

    def refuses(self, *args: Any) -> str | None:
        """Say why such a call cannot run here, or return None."""
        reason: str | None = self.op.refuses(*self.order(*args), **self.settings)
        return reason


class OpContract(ComponentContract[C]):
    """What every op promises: the formula's numbers, or a refusal that says why."""

    device = "cpu"

    def compare(self, op: Any, formula: Callable[..., Tensor], tensors: list[Tensor], *rest: Any) -> None:
        """Check the op and its gradients against the formula in float64; a refused call must raise instead."""
        mine = [t.to(self.device).detach().requires_grad_() for t in tensors]
        reason = op.refuses(*mine, *rest)
        if reason is not None:
            assert reason.strip(), "a refusal must say why"
            with pytest.raises(ValueError):
                op(*mine, *rest)
            return
        exact = [t.detach().double().to(self.device).requires_grad_() for t in tensors]
        before = [t.clone() for t in mine]
        found, wanted = op(*mine, *rest), formula(*exact, *rest)
        assert found.dtype == tensors[0].dtype
        self._close(found, wanted)
        weight = torch.linspace(-1, 1, wanted.numel(), dtype=torch.float64, device=self.device).view(wanted.shape)
        got = torch.autograd.grad((found.double() * weight).sum(), mine)
        right = torch.autograd.grad((wanted * weight).sum(), exact)
        for one, other in zip(got, right, strict=True):
            self._close(one, other)
        assert all(map(torch.equal, before, mine)), "the op changed what it was given"

    def _close(self, found: Tensor, wanted: Tensor) -> None:
        assert found.shape == wanted.shape
        limit = TOLERANCE[found.dtype] * max(1.0, wanted.abs().max().item())
        assert (found.double() - wanted).abs().max().item() <= limit

    def random(self, *shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return unit Gaussian numbers rounded to `dtype`."""
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax of q k^T / sqrt(E) plus the mask, times v."""
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return torch.matmul((scores if mask is None else scores + mask.to(scores.dtype)).softmax(-1), v)


class AttentionContract(OpContract[AttentionConfig]):
    """What every attention promises."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
    @pytest.mark.parametrize(("queries", "keys", "width"), [(1, 1, 8), (7, 13, 40), (33, 257, 64)])
    def test_equals_its_formula(self, tmp_path: Path, dtype: torch.dtype, queries: int, keys: int, width: int) -> None:
        """Scores scaled by 1/sqrt(E), at odd lengths, without a mask."""
        q, k, v = (self.random(2, 3, n, width, seed=n, dtype=dtype) for n in (queries, keys, keys))
        self.compare(self.config.build(self.context(tmp_path)), attention, [q, k, v])

    @pytest.mark.parametrize("shape", [(2, 1, 1, 13), (1, 1, 7, 13), (2, 3, 7, 13)])
    def test_adds_a_mask_that_broadcasts(self, tmp_path: Path, shape: tuple[int, ...]) -> None:
        """Additive, with -inf for keys that are not attended."""
        q, k, v = (self.random(2, 3, n, 40, seed=n) for n in (7, 13, 13))
        mask = self.random(*shape, seed=5)
        mask[..., 4:6] = -torch.inf
        self.compare(self.config.build(self.context(tmp_path)), attention, [q, k, v], mask.to(self.device))

    def test_takes_heads_split_by_a_view(self, tmp_path: Path) -> None:
        """Inputs that are transposed views, as a backbone makes them."""
        q, k, v = (self.random(2, n, 3, 16, seed=n).transpose(1, 2) for n in (7, 13, 13))
        self.compare(self.config.build(self.context(tmp_path)), attention, [q, k, v])


def group_norm_silu(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, *, silu: bool = True) -> Tensor:
    """silu of x normalised over each group of channels and all places, or the norm alone."""
    grouped = x.reshape(x.shape[0], groups, -1)
    centred = grouped - grouped.mean(-1, keepdim=True)
    normal = (centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()).reshape(x.shape)
    shape = (1, -1, *[1] * (x.ndim - 2))
    scaled = normal * weight.view(shape) + bias.view(shape)
    return scaled * scaled.sigmoid() if silu else scaled


class GroupNormSiLUContract(OpContract[GroupNormSiLUConfig]):
    """What every group norm with SiLU promises."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
    @pytest.mark.parametrize("shape", [(2, 8, 5, 7), (1, 32, 1, 3), (3, 64, 11)])
    def test_equals_its_formula(self, tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        """With weight and bias, at odd sizes, in two and one dimensions of space."""
        x, weight, bias = (self.random(*s, seed=i, dtype=dtype) for i, s in enumerate((shape, shape[1:2], shape[1:2])))
        self.compare(self.config.build(self.context(tmp_path)), group_norm_silu, [x, weight, bias], 4, 1e-5)

    def test_leaves_the_silu_out_where_it_is_told_to(self, tmp_path: Path) -> None:
        """The norm alone, by the same op."""
        x, weight, bias = (self.random(*s, seed=i) for i, s in enumerate(((2, 8, 5, 7), (8,), (8,))))
        plain = partial(group_norm_silu, silu=False)
        self.compare(Called(self.config.build(self.context(tmp_path)), silu=False), plain, [x, weight, bias], 4, 1e-5)

    def test_keeps_the_memory_format(self, tmp_path: Path) -> None:
        """Channels-last in, channels-last out."""
        x = self.random(2, 8, 6, 5).to(self.device, memory_format=torch.channels_last)
        op = self.config.build(self.context(tmp_path))
        rest = (torch.ones(8, device=self.device), torch.zeros(8, device=self.device), 4, 1e-6)
        if op.refuses(x, *rest) is None:
            assert op(x, *rest).is_contiguous(memory_format=torch.channels_last)


def geglu(x: Tensor) -> Tensor:
    """The first half times the exact GELU of the second."""
    value, gate = x.chunk(2, dim=-1)
    return value * gate * (1 + torch.erf(gate / 2**0.5)) / 2


class GEGLUContract(OpContract[GEGLUConfig]):
    """What every GEGLU promises."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
    @pytest.mark.parametrize("shape", [(2, 7, 26), (5, 2), (1, 3, 3, 130)])
    def test_equals_its_formula(self, tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        """The erf form, at odd sizes and any rank."""
        self.compare(self.config.build(self.context(tmp_path)), geglu, [self.random(*shape, dtype=dtype)])


def add_layer_norm(x: Tensor, added: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The sum and its norm, side by side."""
    total = x + added
    centred = total - total.mean(-1, keepdim=True)
    return torch.cat((total, centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias), dim=-1)


class AddLayerNormContract(OpContract[AddLayerNormConfig]):
    """What every sum with a layer norm promises."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
    @pytest.mark.parametrize("shape", [(2, 7, 26), (5, 3), (1, 3, 130)])
    def test_equals_its_formula(self, tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        """The sum, and its norm with weight and bias, at odd sizes."""
        rows = [self.random(*shape, seed=seed, dtype=dtype) for seed in (1, 2)]
        rest = [self.random(shape[-1], seed=seed, dtype=dtype) for seed in (3, 4)]
        self.compare(Called(self.config.build(self.context(tmp_path))), add_layer_norm, [*rows, *rest], 1e-5)

    def test_normalises_rows_to_which_nothing_is_added(self, tmp_path: Path) -> None:
        """The rows themselves are the sum."""
        op = Called(self.config.build(self.context(tmp_path)), lambda x, *rest: (x, None, *rest))
        x, weight, bias = self.random(3, 26, seed=1), self.random(26, seed=2), self.random(26, seed=3)

        def alone(x: Tensor, *rest: Any) -> Tensor:
            return add_layer_norm(x, torch.zeros_like(x), *rest)

        self.compare(op, alone, [x, weight, bias], 1e-5)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x over the root of its mean square, times the weight."""
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


class RMSNormContract(OpContract[RMSNormConfig]):
    """What every RMS norm promises."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
    @pytest.mark.parametrize("shape", [(2, 7, 26), (5, 3), (1, 130)])
    def test_equals_its_formula(self, tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        """Over the last dimension, at odd sizes."""
        x, weight = self.random(*shape, seed=1, dtype=dtype), self.random(shape[-1], seed=2, dtype=dtype)
        self.compare(self.config.build(self.context(tmp_path)), rms_norm, [x, weight], 1e-5)


class RotaryContract(OpContract[RotaryConfig]):
    """What every rotation by positions promises."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
    @pytest.mark.parametrize(("rows", "heads", "width"), [(1, 1, 2), (7, 3, 10), (5, 34, 128)])
    def test_equals_its_formula(self, tmp_path: Path, dtype: torch.dtype, rows: int, heads: int, width: int) -> None:
        """Neighbours are turned; heads are a view of a wider product."""
        x = self.random(rows, heads + 2, width, dtype=dtype)[:, :heads]
        angles = self.random(rows, width // 2, seed=1).to(torch.float64 if dtype == torch.float64 else torch.float32)
        turns = torch.polar(torch.ones_like(angles), angles).to(self.device)

        def turned(x: Tensor, turns: Tensor) -> Tensor:
            cos, sin = turns.real.double().unsqueeze(1), turns.imag.double().unsqueeze(1)
            even, odd = x[..., 0::2], x[..., 1::2]
            return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)

        self.compare(self.config.build(self.context(tmp_path)), turned, [x], turns)


def quantized_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """x times what the integers stand for, column by column."""
    if weight.shape[1] < x.shape[-1]:
        weight = torch.stack((weight >> 4, (weight << 4) >> 4), dim=-1).flatten(1)
    scales = scale.double().view(len(weight), -1)
    values = weight.double() * scales.repeat_interleave(weight.shape[1] // scales.shape[1], dim=1)
    return x @ values.mT + (0 if bias is None else bias.double())


class QuantizedLinearContract(OpContract[QuantizedLinearConfig]):
    """What every linear layer of integers promises."""

    def layer(self, dtype: torch.dtype, bits: int, width: int, groups: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return x [2, 5, width], and weight, scale and bias of 70 rows; scales are per row where `groups` is 0."""
        draw = torch.Generator().manual_seed(1)
        weight = torch.randint(-128, 128, (70, width * bits // 8), generator=draw, dtype=torch.int8).to(self.device)
        scale = self.random(70, *((groups,) if groups else ()), seed=2, dtype=torch.bfloat16).to(self.device) / width
        bias = self.random(70, seed=3, dtype=dtype).to(self.device)
        return self.random(2, 5, width, dtype=dtype), weight, scale, bias

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
    @pytest.mark.parametrize("bits", [8, 4])
    @pytest.mark.parametrize(("width", "groups"), [(128, 0), (128, 2), (6, 0), (12, 3)])
    def test_equals_its_formula(self, tmp_path: Path, dtype: torch.dtype, bits: int, width: int, groups: int) -> None:
        """With a scale per row or per group of columns; the gradient goes back to x alone, unless it is refused."""
        x, *rest = self.layer(dtype, bits, width, groups)
        self.compare(self.config.build(self.context(tmp_path)), quantized_linear, [x], *rest)

    @pytest.mark.parametrize(("bits", "groups"), [(8, 0), (4, 2)])
    def test_takes_rows_without_a_bias_where_no_gradient_is_kept(self, tmp_path: Path, bits: int, groups: int) -> None:
        """As a frozen model calls it."""
        x, weight, scale, _ = self.layer(torch.float32, bits, 128, groups)
        op, x = self.config.build(self.context(tmp_path)), x.to(self.device)
        if op.refuses(x, weight, scale, None) is None:
            self._close(op(x, weight, scale, None), quantized_linear(x.double(), weight, scale))
