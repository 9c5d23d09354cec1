"""float32 on CPUs by the faster of torch's two libraries, wherever that library keeps it float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

LARGEST_ERROR = 1e-4
"""Relative to the largest result: float32 is off by some 1e-6, what was rounded to bfloat16 by some 1e-3."""
_MKLDNN: Any = torch.backends.mkldnn  # its type stubs lack what is read here


@contextmanager
def exact_onednn() -> Iterator[str]:
    """Compute float32 matrix products and attention on the CPU through oneDNN for a while, and say what computes them.

    On processors that are not Intel's, oneDNN is about twice as fast as torch's default. The setting that picks it
    allows bfloat16 too: a processor with AMX uses the leave, others do not. So the first call in a process tries real
    products against float64, and where one is rounded float32 stays as exact as torch has it, whatever was set
    before. The state is that of the process; it is put back on leaving. GPUs are not touched.
    """
    if not hasattr(_MKLDNN, "matmul"):
        yield f"torch's own library: torch {torch.__version__} cannot pick oneDNN"
        return
    rounded = why_not_onednn()
    with _precision("bf16" if rounded is None else "ieee"):
        yield "oneDNN" if rounded is None else f"torch's own library: {rounded}"


@contextmanager
def without_onednn() -> Iterator[None]:
    """Compute float32 products through torch's own library for a while, which starts small ones faster: attention of
    few rows, whose products are small and many, takes a third of the time.
    """
    if not hasattr(_MKLDNN, "matmul"):
        yield
        return
    with _precision("ieee"):
        yield


@cache
def why_not_onednn() -> str | None:
    """Say which product oneDNN rounds on this machine, and by how much; None if it keeps all float32."""
    if not _MKLDNN.is_available():
        return "this torch is built without oneDNN"
    # The caller may be drawing under autocast or without gradients.
    with torch.inference_mode(False), torch.autocast("cpu", enabled=False):
        for name, (product, arguments) in _products().items():
            with _precision("ieee"):
                right = product(*(tensor.double() for tensor in arguments))
            with _precision("bf16"):
                found = product(*arguments)
            error = float((found.double() - right).abs().max() / right.abs().max())
            if not error <= LARGEST_ERROR:
                return f"oneDNN rounds float32 to bfloat16 here, '{name}' is off by {error:.0e}"
    return None


def _products() -> Mapping[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]]:
    """Return the products that the nets are made of, forward and backward, large enough for oneDNN to take them."""
    draw = torch.Generator().manual_seed(0)

    def random(*size: int) -> Tensor:
        return torch.randn(size, generator=draw)

    rows, bias = random(128, 320), random(512)
    heads = random(2, 4, 128, 64), random(2, 4, 31, 64), random(2, 4, 31, 64)
    return {
        "linear": (F.linear, (rows, random(512, 320), bias)),
        "gradient of a linear's weight": (lambda x, y: x.mT @ y, (rows, random(128, 512))),
        "batched product": (torch.bmm, (random(8, 128, 64), random(8, 64, 128))),
        "attention": (_attention, heads),
        "attention with a mask": (_attention, (*heads, random(2, 1, 1, 31))),
        "gradient of attention": (_gradient_of_attention, heads),
    }


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _gradient_of_attention(*heads: Tensor) -> Tensor:
    leaves = [tensor.detach().requires_grad_() for tensor in heads]
    with torch.enable_grad():
        found = torch.autograd.grad(_attention(*leaves).square().sum(), leaves)
    return torch.cat([gradient.flatten() for gradient in found])


@contextmanager
def _precision(name: str) -> Iterator[None]:
    matmul = _MKLDNN.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = name
    try:
        yield
    finally:
        matmul.fp32_precision = before
