"""Calls of the ops as the models make them, and whether an implementation is as right as torch in the same dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import gcd
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from kolors_kernel.component import BuildContext
from kolors_ops.quantized_linear.native import TorchQuantizedLinear
from kolors_weights.quantizing import dequantize

Arguments: TypeAlias = tuple[Any, ...]
GROUPS, EPS = 32, 1e-5
GROUP = 64


@dataclass(frozen=True)
class Draw:
    """Random tensors on a device, the same ones again for the same seed; on meta, tensors without memory."""

    device: torch.device
    dtype: torch.dtype
    seed: int = 0

    def normal(self, *shapes: Sequence[int]) -> Iterator[Tensor]:
        """Yield a standard normal tensor of each shape."""
        if self.device.type == "meta":
            yield from (torch.empty(tuple(shape), dtype=self.dtype, device="meta") for shape in shapes)
            return
        generator = torch.Generator(self.device).manual_seed(self.seed)
        for shape in shapes:
            yield torch.randn(tuple(shape), generator=generator, device=self.device).to(self.dtype)

    def bytes(self, *shape: int) -> Tensor:
        """Return int8 of a shape, any as likely as another."""
        if self.device.type == "meta":
            return torch.empty(shape, dtype=torch.int8, device="meta")
        generator = torch.Generator(self.device).manual_seed(self.seed + 1000)  # not what the others are made of
        return torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8, device=self.device)


@dataclass(frozen=True)
class Kind:
    """How ops of a kind are called: arguments of a shape and a form, which of them have gradients, and torch's own.

    Where none of them has a gradient, there is no way back.
    """

    arguments: Callable[[Draw, tuple[int, ...], str], Arguments]
    differentiated: tuple[int, ...]
    torchs: Callable[..., Any]
    """The fastest that torch has without compiling."""
    formula: Callable[..., Any]
    """The formula written down in torch, in the dtype of the arguments: what torch.compile is given."""


@dataclass(frozen=True)
class Trial:
    """One call of a kind of op: the shape of its first argument, what else there is, and how often a model makes it.

    Of attention, the shape is (B, A, N, L, E); of quantized_linear it is (R, I, O), and the form one of "8 bits",
    "4 bits" and "4 bits by 64", with " bias" after it where there is one.
    """

    kind: str
    shape: tuple[int, ...]
    form: str = ""
    calls: int = 1

    def __str__(self) -> str:
        return f"{self.kind} {'x'.join(map(str, self.shape))}{self.form and f' {self.form}'}"

    def arguments(self, draw: Draw) -> Arguments:
        """Return the positional arguments of the call."""
        return KINDS[self.kind].arguments(draw, self.shape, self.form)

    def asks(self, op: Callable[..., Any]) -> Callable[..., Any]:
        """Return the op with what the call says by name."""
        return partial(op, **self.named)

    @property
    def goes_back(self) -> bool:
        """Whether the call has gradients."""
        return bool(KINDS[self.kind].differentiated)

    @property
    def named(self) -> dict[str, Any]:
        """What the call says by name."""
        return {"silu": False} if self.form == "no silu" else {}

    def to_judge(self) -> Trial:
        """Return the call in less memory, to be judged: one picture of attention, whose definition holds all scores."""
        return replace(self, shape=(1, *self.shape[1:])) if self.kind == "attention" else self


def implementation(kind: str, name: str, **settings: Any) -> Any:
    """Return the op that a component of this plugin builds. Raises KeyError when there is no such component."""
    from kolors_ops.config import COMPONENTS

    classes = {(each.kind, each.model_fields["type"].default): each for each in COMPONENTS}
    config: Any = classes[kind, name](**settings)
    return config.build(BuildContext())


def made_by(op: Callable[..., Any], arguments: Arguments) -> tuple[Tensor, ...]:
    """Return what an op makes of these arguments, as a tuple also where that is one tensor."""
    found = op(*arguments)
    return found if isinstance(found, tuple) else (found,)


class Tape:
    """A call whose gradients can be asked for again and again."""

    def __init__(self, kind: str, op: Callable[..., Any], arguments: Arguments, grads: Sequence[Tensor] = ()) -> None:
        wanted = KINDS[kind].differentiated
        taken = [
            a.detach().requires_grad_() if i in wanted and isinstance(a, Tensor) else a for i, a in enumerate(arguments)
        ]
        self._leaves = [a for i, a in enumerate(taken) if i in wanted and isinstance(a, Tensor)]
        with torch.enable_grad():
            self.made = made_by(op, tuple(taken))
        self._grads = [*grads] or [torch.ones_like(t) for t in self.made]

    def gradients(self) -> tuple[Tensor, ...]:
        """Return the gradient of every differentiated argument."""
        if not self._leaves:
            return ()
        return torch.autograd.grad(self.made, self._leaves, self._grads, retain_graph=True)

    def everything(self) -> list[Tensor]:
        """Return what was made, and the gradients."""
        return [*(t.detach() for t in self.made), *self.gradients()]


def exactly(argument: Any) -> Any:
    """Return a tensor in float64, or in complex numbers of it, and integers and anything else as they are."""
    if not isinstance(argument, Tensor) or not (argument.is_floating_point() or argument.is_complex()):
        return argument
    return argument.detach().to(torch.complex128 if argument.is_complex() else torch.float64)


@dataclass(frozen=True)
class Verdict:
    """How far each result is from that in float64, and how far it may be: twice as far as torch's in the same dtype."""

    distances: tuple[float, ...]
    allowed: tuple[float, ...]

    @property
    def wrong(self) -> str | None:
        """Say which results are too far off, or return None."""
        pairs = zip(self.distances, self.allowed, strict=True)
        far = [f"result {i}: {d:.3g} off, allowed {a:.3g}" for i, (d, a) in enumerate(pairs) if not d <= a]
        return "; ".join(far) or None


class Judge:
    """What is right for one call, and its way back if it has one: the definition in float64, and torch in the dtype.

    `allowed` is how far off each result may be.
    """

    def __init__(self, trial: Trial, draw: Draw) -> None:
        self._trial, self._arguments = trial, trial.arguments(draw)
        kind = KINDS[trial.kind]
        torchs, definition = trial.asks(kind.torchs), trial.asks(implementation(trial.kind, "reference"))
        shapes = [t.shape for t in made_by(torchs, self._arguments)]
        self._grads = [*Draw(draw.device, draw.dtype, draw.seed + 1).normal(*shapes)]
        exact, upper = tuple(map(exactly, self._arguments)), [grad.double() for grad in self._grads]
        self._right = Tape(trial.kind, definition, exact, upper).everything()
        theirs = Tape(trial.kind, torchs, self._arguments, self._grads).everything()
        self.allowed = tuple(map(_allowed, theirs, self._right))

    def verdict(self, op: Callable[..., Any]) -> Verdict:
        """Return how far an implementation is off. Raises ValueError when it refuses the call."""
        found = Tape(self._trial.kind, self._trial.asks(op), self._arguments, self._grads).everything()
        for ours, right in zip(found, self._right, strict=True):
            if ours.shape != right.shape:
                raise ValueError(f"a result is of shape {tuple(ours.shape)} where {tuple(right.shape)} is due")
        return Verdict(tuple(map(_distance, found, self._right)), self.allowed)


def _distance(found: Tensor, right: Tensor) -> float:
    return float((found.double() - right).abs().max()) if found.numel() else 0.0


def _allowed(torchs: Tensor, right: Tensor) -> float:
    """Return twice the distance of torch's, and at least how far chance alone takes a result from the exact one.

    That is half a step of a dtype of 16 bits at the largest value, since it is computed in more and rounded once.
    Float32 is computed in itself, where one way of computing may be exact by chance and another not: two steps.
    """
    steps = 0.5 if torchs.element_size() < 4 else 2.0
    return max(2 * _distance(torchs, right), steps * torch.finfo(torchs.dtype).eps * float(right.abs().max()))


def _attention(draw: Draw, shape: tuple[int, ...], form: str) -> Arguments:
    """q, k and v as views of [B, N, A * E], the way a projection gives them, and a float32 mask for keys, or None."""
    batch, heads, queries, keys, width = shape
    flat = draw.normal(*((batch, n, heads * width) for n in (queries, keys, keys)), (batch, 1, 1, keys))
    *qkv, mask = flat
    q, k, v = (t.view(batch, -1, heads, width).transpose(1, 2) for t in qkv)
    return q, k, v, mask.float() if form == "bias" else None


def _group_norm_silu(draw: Draw, shape: tuple[int, ...], form: str) -> Arguments:
    x, weight, bias = draw.normal(shape, (shape[1],), (shape[1],))
    return x.contiguous(memory_format=torch.channels_last) if form == "channels_last" else x, weight, bias, GROUPS, EPS


def _geglu(draw: Draw, shape: tuple[int, ...], form: str) -> Arguments:
    return tuple(draw.normal(shape))


def _add_layer_norm(draw: Draw, shape: tuple[int, ...], form: str) -> Arguments:
    x, added, weight, bias = draw.normal(shape, shape, shape[-1:], shape[-1:])
    return x, None if form == "alone" else added, weight, bias, EPS


def _rms_norm(draw: Draw, shape: tuple[int, ...], form: str) -> Arguments:
    return *draw.normal(shape, shape[-1:]), EPS


def _rotary(draw: Draw, shape: tuple[int, ...], form: str) -> Arguments:
    """Heads beside others, and turns in the dtype, of which the second half of a head has none, as in ChatGLM3."""
    rows, heads, width = shape
    (x,) = draw.normal((rows, heads + 2, width))
    angles = torch.arange(rows, dtype=torch.float32, device=draw.device)[:, None].repeat(1, width // 2)
    angles[:, width // 4 :] = 0
    return x[:, :heads], torch.complex(*(t.to(draw.dtype).float() for t in (angles.cos(), angles.sin())))


def _quantized_linear(draw: Draw, shape: tuple[int, ...], form: str) -> Arguments:
    """Any integers, and scales of either sign, which are bfloat16 whatever the dtype."""
    rows, width, height = shape
    bits = 4 if form.startswith("4") else 8
    scales = (height, width // gcd(width, GROUP)) if "by" in form else (height,)
    x, bias, drawn = draw.normal((rows, width), (height,), scales)
    scale = ((drawn + drawn.sign()) / 2**bits).to(torch.bfloat16)
    return x, draw.bytes(height, width * bits // 8), scale, bias if form.endswith("bias") else None


def _softmax_formula(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return torch.softmax(scores if mask is None else scores + mask.to(q.dtype), dim=-1) @ v


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask.to(q.dtype))


def _norm_then_silu(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, *, silu: bool = True) -> Tensor:
    normal = F.group_norm(x, groups, weight, bias, eps)
    return F.silu(normal) if silu else normal


def _gelu_of_the_gate(x: Tensor) -> Tensor:
    value, gate = x.chunk(2, dim=-1)
    return value * F.gelu(gate)


def _add_then_norm(x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = x if added is None else x + added
    return total, F.layer_norm(total, weight.shape, weight, bias, eps)


def _torchs_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, eps)


def _turned_pairs(x: Tensor, turns: Tensor) -> Tensor:
    """Return the products of complex numbers, written out in the dtype of x, which may have no complex one."""
    cos, sin = (t.to(x.dtype).unsqueeze(1) for t in (turns.real, turns.imag))
    one, other = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
    return torch.stack((one * cos - other * sin, one * sin + other * cos), dim=-1).flatten(-2)


def _widened_then_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, dequantize(weight, scale, x.shape[-1], x.dtype), bias)


KINDS: Mapping[str, Kind] = {
    "attention": Kind(_attention, (0, 1, 2), _sdpa, _softmax_formula),
    "group_norm_silu": Kind(_group_norm_silu, (0, 1, 2), _norm_then_silu, _norm_then_silu),
    "geglu": Kind(_geglu, (0,), _gelu_of_the_gate, _gelu_of_the_gate),
    "add_layer_norm": Kind(_add_layer_norm, (0, 1, 2, 3), _add_then_norm, _add_then_norm),
    "rms_norm": Kind(_rms_norm, (0, 1), _torchs_rms_norm, _torchs_rms_norm),
    "rotary": Kind(_rotary, (0,), _turned_pairs, _turned_pairs),
    "quantized_linear": Kind(_quantized_linear, (), TorchQuantizedLinear(), _widened_then_linear),
}
"""By the name of the kind; every one has a component 'reference', which is its definition."""
