"""The calls of every op that are benched: by a name for each, its arguments and how often a forward makes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from benchmarks.shapes import GROUPS, TextShape, UNetShape

if TYPE_CHECKING:
    from torch import Generator, dtype

Arguments: TypeAlias = tuple[Any, ...]
Cases: TypeAlias = "Mapping[str, tuple[Callable[[Generator, dtype], Arguments], int]]"
EPS = 1e-5
GROUP = 64  # columns of a weight of 4 bits that share a scale


def attention(unet: UNetShape, text: TextShape) -> Cases:
    """Self and cross attention; cross attention with a key bias too, as merged padding makes it."""
    found = {}
    for shape, times in unet.attention().items():
        label = "x".join(map(str, shape))
        found[label] = (partial(_qkv, shape, False), times)
        if shape[3] == unet.text_tokens:
            found[f"{label} bias"] = (partial(_qkv, shape, True), times)
    return found


def _qkv(shape: tuple[int, int, int, int, int], biased: bool, draw: Generator, kind: dtype) -> Arguments:
    """q, k and v as views of [B, N, A * E], the way a projection gives them, and the mask."""
    import torch

    batch, heads, queries, keys, width = shape
    flat = [torch.randn(batch, n, heads * width, generator=draw).to(kind) for n in (queries, keys, keys)]
    q, k, v = (t.view(batch, -1, heads, width).transpose(1, 2) for t in flat)
    return q, k, v, torch.rand(batch, 1, 1, keys, generator=draw).to(kind) if biased else None


def group_norm_silu(unet: UNetShape, text: TextShape) -> Cases:
    """Pictures [B, C, h, w]."""
    return {
        "x".join(map(str, shape)): (partial(_picture, shape), times) for shape, times in unet.group_norm_silu().items()
    }


def _picture(shape: tuple[int, int, int, int], draw: Generator, kind: dtype) -> Arguments:
    import torch

    weight, bias = (torch.randn(shape[1], generator=draw).to(kind) for _ in range(2))
    return torch.randn(shape, generator=draw).to(kind), weight, bias, GROUPS, EPS


def geglu(unet: UNetShape, text: TextShape) -> Cases:
    """Values and gates [B, N, 2F]."""
    return {"x".join(map(str, shape)): (partial(_rows, shape), times) for shape, times in unet.geglu().items()}


def _rows(shape: tuple[int, int, int], draw: Generator, kind: dtype) -> Arguments:
    import torch

    return (torch.randn(shape, generator=draw).to(kind),)


def add_layer_norm(unet: UNetShape, text: TextShape) -> Cases:
    """Rows [B, N, C] and others that are added to them."""
    return {"x".join(map(str, shape)): (partial(_two_rows, shape), n) for shape, n in unet.add_layer_norm().items()}


def _two_rows(shape: tuple[int, int, int], draw: Generator, kind: dtype) -> Arguments:
    import torch

    rows, parameters = (shape, shape), (shape[-1:], shape[-1:])
    return *(torch.randn(each, generator=draw).to(kind) for each in (*rows, *parameters)), EPS


def rms_norm(unet: UNetShape, text: TextShape) -> Cases:
    """Rows [R, D]."""
    return {"x".join(map(str, shape)): (partial(_weighted, shape), n) for shape, n in text.rms_norm().items()}


def _weighted(shape: tuple[int, int], draw: Generator, kind: dtype) -> Arguments:
    import torch

    return *(torch.randn(each, generator=draw).to(kind) for each in (shape, shape[-1:])), EPS


def rotary(unet: UNetShape, text: TextShape) -> Cases:
    """Heads [R, A, E]."""
    return {"x".join(map(str, shape)): (partial(_turned, shape), n) for shape, n in text.rotary().items()}


def _turned(shape: tuple[int, int, int], draw: Generator, kind: dtype) -> Arguments:
    """Heads, and turns whose second half is 1, as ChatGLM3 turns the first half of a head."""
    import torch

    rows, _, width = shape
    angles = torch.rand(rows, width // 2, generator=draw)
    angles[:, width // 4 :] = 0
    return torch.randn(shape, generator=draw).to(kind), torch.polar(torch.ones_like(angles), angles)


def quantized_linear(unet: UNetShape, text: TextShape) -> Cases:
    """Layers of 8 bits with a scale for each row, and of 4 bits with one for each group of columns."""
    return {
        f"{rows}x{width}x{height} {bits} bits{' bias' if biased else ''}": (
            partial(_integers, (rows, width, height), bits, biased),
            times,
        )
        for (rows, width, height, biased), times in text.linear().items()
        for bits in (8, 4)
    }


def _integers(shape: tuple[int, int, int], bits: int, biased: bool, draw: Generator, kind: dtype) -> Arguments:
    """Rows, and a weight of any integers; its scales, of either sign, are bfloat16 whatever the dtype."""
    import torch

    rows, width, height = shape
    weight = torch.randint(-128, 128, (height, width * bits // 8), generator=draw, dtype=torch.int8)
    drawn = torch.randn(height, width // math.gcd(width, GROUP) if bits == 4 else 1, generator=draw)
    scale = ((drawn + drawn.sign()) / 2**bits).to(torch.bfloat16)
    x, bias = (torch.randn(each, generator=draw).to(kind) for each in ((rows, width), (height,)))
    return x, weight, scale if bits == 4 else scale.view(height), bias if biased else None
