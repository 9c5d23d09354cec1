"""Modules without weights, and weights into modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kolors_kernel.errors import WeightsError

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


def fit(module: nn.Module, state: Mapping[str, Tensor], *, where: Path) -> None:
    """Give `module`, which may be on the meta device, the tensors of `state` as they are: dtype and all.

    Raises WeightsError listing every missing, extra and misshapen key of `where`; the module is then unchanged.
    """
    wanted = module.state_dict()
    problems = {
        "missing": [key for key in wanted if key not in state],
        "extra": [key for key in state if key not in wanted],
        "misshapen": [
            f"{key} is {_shape(state[key])}, should be {_shape(tensor)}"
            for key, tensor in wanted.items()
            if key in state and _shape(state[key]) != _shape(tensor)
        ],
    }
    said = [f"{len(keys)} {name}: {_some(keys)}" for name, keys in problems.items() if keys]
    if said:
        raise WeightsError(f"{where} does not fit the model; {'; '.join(said)}")
    module.load_state_dict(dict(state), strict=True, assign=True)


def _shape(tensor: Tensor) -> str:
    return f"{list(tensor.shape)}" if tensor.is_floating_point() else f"{list(tensor.shape)} of {tensor.dtype}"


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:_LISTED]) + (f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else "")
