"""Every installed implementation of every op, at the U-Net's shapes, beside what diffusers calls.

Times are CPU time of one thread. The peer is plain torch: scaled_dot_product_attention, group_norm and silu, chunk
and gelu. `error_float64` and `peer_error_float64` in the JSON are the distances of both from the peer's result in
float64, relative to its largest value.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from benchmarks.measure import calls, compare
from benchmarks.report import Note, Result, timed_row
from benchmarks.shapes import GROUPS, TEXTS, UNETS, TextShape, UNetShape
from kolors_kernel import BuildContext, discover
from kolors_kernel.errors import KolorsError

if TYPE_CHECKING:
    from torch import Generator, Tensor, dtype

    Arguments: TypeAlias = tuple[Any, ...]
    Cases: TypeAlias = Mapping[str, tuple[Callable[[Generator, dtype], Arguments], int]]
threads = 1
EPS = 1e-5
AT_LEAST = 0.02  # seconds in one sample, so that the clock's grain does not show


@dataclass(frozen=True)
class OpKind:
    """How a kind of op is benched: its cases with their calls in a forward, inputs for one, and the peer."""

    peer_name: str
    peer: Callable[..., Any]
    cases: Callable[[UNetShape, TextShape], Cases]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare what is measured."""
    parser.add_argument("--quick", action="store_true", help="a tiny U-Net in float32, few rounds: seconds")
    parser.add_argument("--unet", nargs="+", choices=UNETS, default=["small", "kolors_512"], help="whose shapes")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], help="names of torch dtypes")
    parser.add_argument("--backward", action="store_true", help="time forward and backward together")
    parser.add_argument("--rounds", type=int, default=5, help="how many interleaved rounds the medians are of")


def results(options: argparse.Namespace) -> Iterator[Result]:
    """Measure every implementation of the registry at every shape."""
    import torch

    if options.quick:
        options.unet, options.dtype, options.rounds = ["tiny"], ["float32"], 3
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for unet in options.unet:
            for name in options.dtype:
                for kind, op_kind in kinds().items():
                    yield from _of_kind(kind, op_kind, unet, name, options)
    finally:
        torch.set_num_threads(before)


def kinds() -> dict[str, OpKind]:
    """Return how each kind of op the kernel knows is benched."""
    import torch
    import torch.nn.functional as F

    def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    def group_norm_silu(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        return F.silu(F.group_norm(x, groups, weight, bias, eps))

    def geglu(x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return value * F.gelu(gate)

    def add_layer_norm(x: Tensor, added: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        total = x + added
        return total, F.layer_norm(total, weight.shape, weight, bias, eps)

    def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, eps)

    def rotary(x: Tensor, turns: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.to(turns.real.dtype).view(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * turns.unsqueeze(1)).flatten(-2).to(x.dtype)

    return {
        "attention": OpKind("torch sdpa", attention, _attention_cases),
        "group_norm_silu": OpKind("torch group_norm, silu", group_norm_silu, _group_norm_silu_cases),
        "geglu": OpKind("torch chunk, gelu, mul", geglu, _geglu_cases),
        "add_layer_norm": OpKind("torch add, layer_norm", add_layer_norm, _add_layer_norm_cases),
        "rms_norm": OpKind("torch rms_norm", rms_norm, _rms_norm_cases),
        "rotary": OpKind("torch complex product", rotary, _rotary_cases),
    }


def _of_kind(kind: str, op_kind: OpKind, unet: str, dtype_name: str, options: argparse.Namespace) -> Iterator[Result]:
    import torch

    built = dict(_implementations(kind, dtype_name))
    for label, (make, times) in op_kind.cases(UNETS[unet], TEXTS[unet]).items():
        arguments = make(torch.Generator().manual_seed(0), getattr(torch, dtype_name))
        case = f"{kind} {unet} {label} {dtype_name}{' backward' if options.backward else ''}"
        for name, op in built.items():
            if isinstance(op, KolorsError):
                yield Note("ops", case, name, str(op))
            elif reason := op.refuses(*arguments):
                yield Note("ops", case, name, reason)
            else:
                yield _row(case, name, op, op_kind, arguments, times, options)


def _implementations(kind: str, dtype_name: str) -> Iterator[tuple[str, Any]]:
    """Yield the type name and the op of every component of the kind, or the error that says why it cannot be built."""
    for config in discover().of_kind(kind):
        made = config.tiny()
        try:
            yield made.type, cast(Any, made).build(BuildContext("cpu", dtype_name))
        except KolorsError as error:
            yield made.type, error


def _row(
    case: str, name: str, op: Any, op_kind: OpKind, arguments: Arguments, times: int, options: argparse.Namespace
) -> Result:
    import torch

    work = _forward_and_backward if options.backward else _call
    with torch.set_grad_enabled(options.backward):
        ours, peer = partial(work, op, arguments), partial(work, op_kind.peer, arguments)
        exact = _forward(op_kind.peer, tuple(map(_exactly, arguments)))
        mine, theirs = (_forward(f, arguments) for f in (op, op_kind.peer))
        measured = compare(calls(ours, at_least=AT_LEAST), calls(peer, at_least=AT_LEAST), rounds=options.rounds)
    extra = {"calls": times, "error_float64": _error(mine, exact), "peer_error_float64": _error(theirs, exact)}
    names = (name, op_kind.peer_name)
    return timed_row("ops", case, names=names, measured=measured, error=_error(mine, theirs), extra=extra)


def _forward(op: Callable[..., Any], arguments: Arguments) -> Tensor:
    """Return what the op makes of copies, which it may change, its results side by side."""
    import torch

    found = op(*(a.clone() if _floating(a) else a for a in arguments))
    return (found if isinstance(found, torch.Tensor) else torch.cat(found, dim=-1)).detach()


def _call(op: Callable[..., Any], arguments: Arguments) -> object:
    return op(*arguments)


def _forward_and_backward(op: Callable[..., Tensor], arguments: Arguments) -> object:
    import torch

    leaves = [a.detach().requires_grad_() if _floating(a) else a for a in arguments]
    made = op(*leaves)
    result = made if isinstance(made, torch.Tensor) else torch.cat(made, dim=-1)
    return torch.autograd.grad(result, [a for a in leaves if _floating(a)], torch.ones_like(result))


def _exactly(argument: Any) -> Any:
    """Return a tensor in float64, or complex numbers of it, and anything else as it is."""
    import torch

    if not isinstance(argument, torch.Tensor):
        return argument
    return argument.detach().to(torch.complex128 if argument.is_complex() else torch.float64)


def _floating(argument: object) -> bool:
    import torch

    return isinstance(argument, torch.Tensor) and argument.is_floating_point()


def _error(result: Tensor, right: Tensor) -> float:
    return float((result.double() - right.double()).abs().max() / right.double().abs().max())


def _attention_cases(unet: UNetShape, text: TextShape) -> Cases:
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


def _group_norm_silu_cases(unet: UNetShape, text: TextShape) -> Cases:
    return {
        "x".join(map(str, shape)): (partial(_picture, shape), times) for shape, times in unet.group_norm_silu().items()
    }


def _picture(shape: tuple[int, int, int, int], draw: Generator, kind: dtype) -> Arguments:
    import torch

    weight, bias = (torch.randn(shape[1], generator=draw).to(kind) for _ in range(2))
    return torch.randn(shape, generator=draw).to(kind), weight, bias, GROUPS, EPS


def _geglu_cases(unet: UNetShape, text: TextShape) -> Cases:
    return {"x".join(map(str, shape)): (partial(_rows, shape), times) for shape, times in unet.geglu().items()}


def _rows(shape: tuple[int, int, int], draw: Generator, kind: dtype) -> Arguments:
    import torch

    return (torch.randn(shape, generator=draw).to(kind),)


def _add_layer_norm_cases(unet: UNetShape, text: TextShape) -> Cases:
    return {"x".join(map(str, shape)): (partial(_two_rows, shape), n) for shape, n in unet.add_layer_norm().items()}


def _two_rows(shape: tuple[int, int, int], draw: Generator, kind: dtype) -> Arguments:
    import torch

    rows, parameters = (shape, shape), (shape[-1:], shape[-1:])
    return *(torch.randn(each, generator=draw).to(kind) for each in (*rows, *parameters)), EPS


def _rms_norm_cases(unet: UNetShape, text: TextShape) -> Cases:
    return {"x".join(map(str, shape)): (partial(_weighted, shape), n) for shape, n in text.rms_norm().items()}


def _weighted(shape: tuple[int, int], draw: Generator, kind: dtype) -> Arguments:
    import torch

    return *(torch.randn(each, generator=draw).to(kind) for each in (shape, shape[-1:])), EPS


def _rotary_cases(unet: UNetShape, text: TextShape) -> Cases:
    return {"x".join(map(str, shape)): (partial(_turned, shape), n) for shape, n in text.rotary().items()}


def _turned(shape: tuple[int, int, int], draw: Generator, kind: dtype) -> Arguments:
    """Heads, and turns whose second half is 1, as ChatGLM3 turns the first half of a head."""
    import torch

    rows, _, width = shape
    angles = torch.rand(rows, width // 2, generator=draw)
    angles[:, width // 4 :] = 0
    return torch.randn(shape, generator=draw).to(kind), torch.polar(torch.ones_like(angles), angles)
