"""Whom the kernels are measured beside: torch's own, what torch compiles of the formula, and Liger's kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from kolors_ops.trials import KINDS
from torch import Tensor

OURS, COMPILED, LIGER = "triton", "torch.compile", "liger"
TORCHS = {
    "attention": "torch sdpa",
    "group_norm_silu": "torch group_norm, silu",
    "geglu": "torch gelu, mul",
    "add_layer_norm": "torch add, layer_norm",
    "rms_norm": "torch rms_norm",
    "rotary": "torch products",
    "quantized_linear": "torch widened, linear",
}
"""What torch's own consists of."""


@dataclass(frozen=True)
class Contender:
    """One that is measured beside ours; `plain` is the same in plain torch, which runs on meta too, where there is."""

    name: str
    op: Callable[..., Any]
    plain: Callable[..., Any] | None

    @property
    def version(self) -> str:
        """The version of the package it is of."""
        return version("liger-kernel") if self.name == LIGER else torch.__version__


def contenders(kind: str) -> list[Contender | str]:
    """Return every contender for a kind of op, or why Liger's does not compete."""
    torchs, formula, liger = KINDS[kind].torchs, KINDS[kind].formula, _liger(kind)
    return [
        Contender(TORCHS[kind], torchs, torchs),
        Contender(COMPILED, torch.compile(formula, fullgraph=True, dynamic=False), formula),
        liger if isinstance(liger, str) else Contender(LIGER, liger, None),
    ]


@contextmanager
def compiling_anew() -> Iterator[None]:
    """Forget what was compiled, and compile backward graphs that can be run again, as a bench does."""
    from torch._functorch import config

    torch.compiler.reset()
    with config.patch(donated_buffer=False):
        yield


def _liger(kind: str) -> Callable[..., Any] | str:
    made: Mapping[str, Callable[[Any], Callable[..., Any]]] = {
        "group_norm_silu": lambda ops: partial(_group_norm_silu, ops.group_norm.LigerGroupNormFunction.apply),
        "geglu": lambda ops: partial(_geglu, ops.geglu.LigerGELUMulFunction.apply),
        "add_layer_norm": lambda ops: partial(_add_layer_norm, ops.layer_norm.LigerLayerNormFunction.apply),
        "rms_norm": lambda ops: partial(_rms_norm, ops.rms_norm.LigerRMSNormFunction.apply),
    }
    if kind not in made:
        return "liger-kernel has none of this form"
    if find_spec("liger_kernel") is None:
        return "liger-kernel is not installed"
    return made[kind](import_module("liger_kernel.ops"))


def _group_norm_silu(
    norm: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
) -> Tensor:
    return F.silu(norm(x, weight, bias, x.shape[1], groups, eps))


def _geglu(product: Callable[..., Tensor], x: Tensor) -> Tensor:
    """Multiply by the tanh approximation of GELU, the only one it has; it writes gradients over its inputs."""
    value, gate = x.chunk(2, dim=-1)
    return product(gate.contiguous(), value.contiguous())


def _add_layer_norm(
    norm: Callable[..., Tensor], x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    total = x if added is None else x + added
    return total, norm(total, weight, bias, eps)


def _rms_norm(norm: Callable[..., Tensor], x: Tensor, weight: Tensor, eps: float) -> Tensor:
    offset, casts, over_its_input = 0.0, "llama", False
    return norm(x, weight, eps, offset, casts, over_its_input)
