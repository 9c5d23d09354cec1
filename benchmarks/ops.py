"""Every installed implementation of every op, at the U-Net's shapes, beside what diffusers calls.

Times are CPU time of one thread. The peer is plain torch: scaled_dot_product_attention, group_norm and silu, chunk
and gelu; of a layer of integers, the linear layer with the same weight in floating point. `error_float64` and
`peer_error_float64` in the JSON are the distances of both from the peer's result in float64, relative to its largest
value.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from benchmarks import op_cases
from benchmarks.measure import calls, compare
from benchmarks.op_cases import Arguments, Cases
from benchmarks.report import Note, Result, timed_row
from benchmarks.shapes import TEXTS, UNETS, TextShape, UNetShape
from kolors_kernel import BuildContext, discover
from kolors_kernel.errors import KolorsError

if TYPE_CHECKING:
    from torch import Tensor

threads = 1
AT_LEAST = 0.02  # seconds in one sample, so that the clock's grain does not show


def _as_they_are(*arguments: Any) -> Arguments:
    return arguments


@dataclass(frozen=True)
class OpKind:
    """How a kind of op is benched: its cases with their calls in a forward, inputs for one, and the peer.

    `given` makes the peer's arguments of ours, in time that is not counted.
    """

    peer_name: str
    peer: Callable[..., Any]
    cases: Callable[[UNetShape, TextShape], Cases]
    given: Callable[..., Arguments] = _as_they_are
    differentiable: bool = True


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

    def in_floating_point(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Arguments:
        from kolors_weights.quantizing import dequantize

        return x, dequantize(weight, scale, x.shape[-1], x.dtype), bias

    return {
        "attention": OpKind("torch sdpa", attention, op_cases.attention),
        "group_norm_silu": OpKind("torch group_norm, silu", group_norm_silu, op_cases.group_norm_silu),
        "geglu": OpKind("torch chunk, gelu, mul", geglu, op_cases.geglu),
        "add_layer_norm": OpKind("torch add, layer_norm", add_layer_norm, op_cases.add_layer_norm),
        "rms_norm": OpKind("torch rms_norm", rms_norm, op_cases.rms_norm),
        "rotary": OpKind("torch complex product", rotary, op_cases.rotary),
        "quantized_linear": OpKind(
            "torch linear, dequantised", F.linear, op_cases.quantized_linear, in_floating_point, differentiable=False
        ),
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
            elif options.backward and not op_kind.differentiable:
                yield Note("ops", case, name, "there are gradients for nothing in it")
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
        given = op_kind.given(*arguments)
        ours, peer = partial(work, op, arguments), partial(work, op_kind.peer, given)
        exact = _forward(op_kind.peer, op_kind.given(*map(_exactly, arguments)))
        mine, theirs = _forward(op, arguments), _forward(op_kind.peer, given)
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
    """Return a tensor in float64, or complex numbers of it, and integers and anything else as they are."""
    import torch

    if not isinstance(argument, torch.Tensor) or not (argument.is_complex() or _floating(argument)):
        return argument
    return argument.detach().to(torch.complex128 if argument.is_complex() else torch.float64)


def _floating(argument: object) -> bool:
    import torch

    return isinstance(argument, torch.Tensor) and argument.is_floating_point()


def _error(result: Tensor, right: Tensor) -> float:
    return float((result.double() - right.double()).abs().max() / right.double().abs().max())
