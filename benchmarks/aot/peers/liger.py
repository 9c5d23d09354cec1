"""Group norm of Liger-Kernel, which has no SiLU: the wheel's own functions and kernels."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib import import_module
from types import ModuleType

import torch
from kolors_ops.operators import Launch, Pick, Sample
from torch import Tensor

from benchmarks.aot.peers.recorded import recording
from benchmarks.aot.peers.shapes import EPS, GROUPS, norms, tensors

PACKAGE, INSTALL = "liger_kernel", "pip install --no-deps liger-kernel==0.8.5"
KERNELS = ("_group_norm_forward_kernel", "_group_norm_backward_kernel")


def samples(dtype: torch.dtype) -> Iterator[Sample]:
    """Yield forward and backward of each group norm of the SDXL U-Net."""
    for shape in norms():
        x, weight = tensors(shape, dtype)
        yield Sample(f"{shape.name} forward", partial(_forward, x, weight))
        yield Sample(f"{shape.name} backward", partial(_backward, x, weight))


def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the group norm of x [B, C, ...] in Triton's interpreter.

    A float has no `to` there, and libdevice is not there: `eps` is one that has, and rsqrt is Triton's own.
    """
    made: Tensor = module(interpreted=True).group_norm_forward(x, x.shape[1], GROUPS, weight, bias, Epsilon(EPS))[0]
    return made


def gradient(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias in Triton's interpreter, from its own mean and rstd."""
    liger = module(interpreted=True)
    channels = x.shape[1]
    _, kept, mean, rstd, _ = liger.group_norm_forward(x, channels, GROUPS, weight, bias, Epsilon(EPS))
    found: tuple[Tensor, Tensor, Tensor] = liger.group_norm_backward(
        grad, kept, weight, bias, mean, rstd, channels, GROUPS
    )
    return found


class Epsilon(float):
    """A float that can be cast as a compiled kernel casts it."""

    def to(self, dtype: object) -> float:
        """Return the number."""
        return self


def module(*, interpreted: bool = False) -> ModuleType:
    """Return the wheel's module. Raises ModuleNotFoundError when it is not installed."""
    liger = import_module("liger_kernel.ops.group_norm")
    if interpreted:
        from benchmarks.aot.interpreting import rsqrt

        vars(liger)["rsqrt"] = rsqrt
    return liger


def _forward(x: Tensor, weight: Tensor, pick: Pick) -> list[Launch]:
    liger = module()
    with recording(liger, KERNELS) as launches:
        liger.group_norm_forward(x, x.shape[1], GROUPS, weight, weight, EPS)
    return launches


def _backward(x: Tensor, weight: Tensor, pick: Pick) -> list[Launch]:
    liger, channels = module(), x.shape[1]
    statistics = x.new_empty((x.shape[0], GROUPS))  # as its forward allocates them
    with recording(liger, KERNELS) as launches:
        liger.group_norm_backward(x, x, weight, weight, statistics, statistics, channels, GROUPS)
    return launches
