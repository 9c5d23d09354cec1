"""The contracts of the backbone's ops: each against its formula in float64, forward and backward, at odd sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

from kolors_kernel.component import ComponentConfig
from kolors_kernel.kinds import AttentionConfig, GEGLUConfig, GroupNormSiLUConfig
from kolors_kernel.testing.contracts.component import ComponentContract

C = TypeVar("C", bound=ComponentConfig)
TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-5, torch.bfloat16: 4e-2}
"""Of the largest value; float64 leaves room for implementations that compute in float32."""


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


def group_norm_silu(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """silu of x normalised over each group of channels and all places."""
    grouped = x.reshape(x.shape[0], groups, -1)
    centred = grouped - grouped.mean(-1, keepdim=True)
    normal = (centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()).reshape(x.shape)
    shape = (1, -1, *[1] * (x.ndim - 2))
    scaled = normal * weight.view(shape) + bias.view(shape)
    return scaled * scaled.sigmoid()


class GroupNormSiLUContract(OpContract[GroupNormSiLUConfig]):
    """What every group norm with SiLU promises."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
    @pytest.mark.parametrize("shape", [(2, 8, 5, 7), (1, 32, 1, 3), (3, 64, 11)])
    def test_equals_its_formula(self, tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        """With weight and bias, at odd sizes, in two and one dimensions of space."""
        x, weight, bias = (self.random(*s, seed=i, dtype=dtype) for i, s in enumerate((shape, shape[1:2], shape[1:2])))
        self.compare(self.config.build(self.context(tmp_path)), group_norm_silu, [x, weight, bias], 4, 1e-5)

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
