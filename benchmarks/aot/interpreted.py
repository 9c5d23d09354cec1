"""How far the results of kernels are from those in float64, in Triton's interpreter: a JSON line for each case.

It must be asked for before Triton is imported, so this is a process of its own: TRITON_INTERPRET=1 python -m
benchmarks.aot.interpreted. Differences are relative to the largest value, in steps of the dtype at 1.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.aot.interpreting import mend, mend_sums
from benchmarks.aot.peers import flag_gems, liger, tutorial
from benchmarks.aot.peers.shapes import EPS, GROUPS
from kolors_kernel import BuildContext, discover
from kolors_kernel.errors import KolorsError

Work: TypeAlias = Callable[[], Sequence[Tensor]]
PICTURE = (1, 320, 16, 16)
"""Groups of ten channels, as the U-Net's first; small, since the interpreter takes its time."""
NUMBERS = {"mean 0": (0.0, 1.0), "mean 5": (5.0, 1.0), "mean 30": (30.0, 1.0), "mean 0, deviation 1000": (0.0, 1e3)}
HEADS = (1, 2, 256, 64)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def cases() -> Iterator[Mapping[str, Any]]:
    """Yield each case with the errors of those that could do it, and the reasons of those that could not."""
    for name, (mean, deviation) in NUMBERS.items():
        for dtype in DTYPES:
            yield from _norm(f"group_norm 320@16x16 {name}", mean, deviation, dtype)
    for dtype in DTYPES:
        yield from _attention("attention 256x256", dtype)


def _norm(case: str, mean: float, deviation: float, dtype: torch.dtype) -> Iterator[Mapping[str, Any]]:
    draw = torch.Generator().manual_seed(0)
    x = (torch.randn(PICTURE, generator=draw) * deviation + mean).to(dtype)
    weight, bias = (torch.randn(PICTURE[1], generator=draw).to(dtype) for _ in range(2))
    grad = torch.randn(PICTURE, generator=draw).to(dtype)
    ours = partial(_op("group_norm_silu"), groups=GROUPS, eps=EPS, silu=False)

    def native(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.group_norm(x, GROUPS, weight, bias, EPS)

    double = tuple(t.double() for t in (x, weight, bias))
    forward: dict[str, Work] = {"triton": lambda: [ours(x, weight, bias)], "torch": lambda: [native(x, weight, bias)]}
    backward: dict[str, Work] = {
        "triton": lambda: _back(ours, (x, weight, bias), grad),
        "torch": lambda: _back(native, (x, weight, bias), grad),
    }
    for name, peer in (("Liger-Kernel", liger), ("FlagGems", flag_gems)):
        forward[name] = partial(_peer_norm, peer, x, weight, bias)
        backward[name] = partial(_peer_gradient, peer, grad, x, weight, bias)
    yield _case(f"{case} forward", dtype, [native(*double)], forward)
    yield _case(f"{case} backward", dtype, _back(native, double, grad.double()), backward)


def _attention(case: str, dtype: torch.dtype) -> Iterator[Mapping[str, Any]]:
    draw = torch.Generator().manual_seed(0)
    q, k, v, grad = (torch.randn(HEADS, generator=draw).to(dtype) for _ in range(4))
    ours = _op("attention")

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        made: Tensor = ours(q, k, v, None)
        return made

    native: Callable[..., Tensor] = F.scaled_dot_product_attention
    double = tuple(t.double() for t in (q, k, v))
    forward: dict[str, Work] = {
        "triton": lambda: [attend(q, k, v)],
        "torch": lambda: [native(q, k, v)],
        "tutorial": lambda: [tutorial.attention(q, k, v)[0]],
    }
    backward: dict[str, Work] = {
        "triton": lambda: _back(attend, (q, k, v), grad),
        "torch": lambda: _back(native, (q, k, v), grad),
        "tutorial": lambda: tutorial.gradients(grad, q, k, v),
    }
    yield _case(f"{case} forward", dtype, [native(*double)], forward)
    yield _case(f"{case} backward", dtype, _back(native, double, grad.double()), backward)


def _case(case: str, dtype: torch.dtype, exact: Sequence[Tensor], work: Mapping[str, Work]) -> Mapping[str, Any]:
    errors, reasons = {}, {}
    for name, run in work.items():
        try:
            with torch.enable_grad():
                errors[name] = _error(run(), exact, dtype)
        except ModuleNotFoundError as error:
            reasons[name] = f"{error.name} is not installed"
        except (KolorsError, RuntimeError, TypeError, ValueError, LookupError) as error:
            reasons[name] = " ".join(str(error).split())[-200:]
        except _interpreter_error() as error:
            reasons[name] = " ".join(str(error.__cause__ or error).split())[-200:]
    return {"case": case, "dtype": str(dtype).removeprefix("torch."), "errors": errors, "reasons": reasons}


def _interpreter_error() -> type[Exception]:
    from triton.errors import TritonError

    found: type[Exception] = TritonError
    return found


def _error(found: Sequence[Tensor], exact: Sequence[Tensor], dtype: torch.dtype) -> float:
    """Return the largest difference, each result's relative to its own largest value."""
    each = [
        float((one.detach().double().view_as(right) - right).abs().max() / right.abs().max())
        for one, right in zip(found, exact, strict=True)
    ]
    return max(each) / torch.finfo(dtype).eps


def _back(op: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor) -> Sequence[Tensor]:
    leaves = [t.detach().requires_grad_() for t in inputs]
    return torch.autograd.grad(op(*leaves), leaves, grad)


def _peer_norm(peer: ModuleType, x: Tensor, weight: Tensor, bias: Tensor) -> Sequence[Tensor]:
    return [peer.norm(x, weight, bias)]


def _peer_gradient(peer: ModuleType, *tensors: Tensor) -> Sequence[Tensor]:
    made: Sequence[Tensor] = peer.gradient(*tensors)
    return made


def _op(kind: str) -> Any:
    """Return our op with kernels. One that there is not raises when it is called."""
    try:
        config: Any = discover().find(kind, "triton")
        return config.tiny().build(BuildContext())
    except KolorsError as reason:
        return partial(_refuse, reason)


def _refuse(reason: KolorsError, *arguments: Any, **named: Any) -> None:
    raise reason


def main() -> None:
    """Write the cases to stdout."""
    torch.set_num_threads(1)
    mend()
    mend_sums()
    for case in cases():
        sys.stdout.write(json.dumps(case) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
