"""Modules without weights, and weights into modules."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kolors_kernel.errors import WeightsError
from kolors_weights.causes import likeliest_cause
from kolors_weights.state import State

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_LISTED = 6  # keys named per complaint; the rest are counted


class _NotDrawing(TorchFunctionMode):
    """Leaves tensors as they are where torch.nn.init would draw their values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return (kwargs or {}).get("tensor", args[0] if args else None)
        return func(*args, **(kwargs or {}))


@contextmanager
def without_weights() -> Iterator[None]:
    """Make modules of shapes alone, on the meta device, to be given their weights by `fit`.

    Their initial weights are not drawn: on that device drawing is pointless, and its first use costs a second.
    """
    with torch.device("meta"), _NotDrawing():
        yield


def fit(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    where: Path,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
) -> None:
    """Give `module`, which may be on the meta device, copies of the tensors of `state`, in a dtype and on a device.

    Without a dtype each keeps the one it is stored in. What is read of a mapped state is released tensor by tensor, so
    that loading takes the memory of the model and of its largest tensor. Raises WeightsError, and leaves the module as
    it was, when keys or shapes or dtypes differ, which is found before anything is read, or when a weight is no number.
    """
    check_fit(module, state, where=where)
    placed = {}
    for key, tensor in state.items():
        placed[key] = _placed(tensor, dtype if tensor.is_floating_point() else None, device)
        if not is_finite(placed[key]):
            stored = "is not finite" if not is_finite(tensor) else f"is infinite in {_name(placed[key].dtype)}"
            raise WeightsError(f"{_file(state, key, where)}: {key} {stored}: the file is damaged, or training diverged")
        if isinstance(state, State):
            state.release(key)
    module.load_state_dict(placed, strict=True, assign=True)


def check_fit(module: nn.Module, state: Mapping[str, Tensor], *, where: Path) -> None:
    """Raise WeightsError listing every missing, extra, misshapen and mistyped key of `where`, and the likeliest cause.

    No tensor is read.
    """
    wanted = module.state_dict()
    both = {key: tensor for key, tensor in wanted.items() if key in state}
    problems = {
        "missing": [key for key in wanted if key not in state],
        "extra": [key for key in state if key not in wanted],
        "misshapen": [
            f"{key} is {list(state[key].shape)}, should be {list(tensor.shape)}"
            for key, tensor in both.items()
            if state[key].shape != tensor.shape
        ],
        "of a wrong dtype": [
            f"{key} is {_name(state[key].dtype)}, should be {' or '.join(map(_name, _readable(tensor.dtype)))}"
            for key, tensor in both.items()
            if state[key].dtype not in _readable(tensor.dtype)
        ],
    }
    said = [f"{len(keys)} {name}: {_some(keys)}" for name, keys in problems.items() if keys]
    if said:
        cause = likeliest_cause(wanted, state)
        raise WeightsError("; ".join([f"{where} does not fit the model", *said, *([cause] if cause else [])]))


@torch.no_grad()
def _placed(tensor: Tensor, dtype: torch.dtype | None, device: str) -> Tensor:
    return tensor.to(device, dtype or tensor.dtype, copy=True)


def is_finite(tensor: Tensor) -> bool:
    """Tell whether every value is a number: neither infinite nor NaN."""
    # Both are NaN where one value is. A hundredth of the time that isfinite takes, and no memory.
    return not tensor.is_floating_point() or not tensor.numel() or all(map(math.isfinite, tensor.aminmax()))


def _readable(dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    return _FLOATS if dtype.is_floating_point else (dtype,)


def _file(state: Mapping[str, Tensor], key: str, where: Path) -> Path:
    return state.file(key) if isinstance(state, State) else where


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:_LISTED]) + (f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else "")
