"""The ops as this project's kernels do them: results from the definition, launches from the plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from kolors_ops.add_layer_norm import op as add_layer_norm
from kolors_ops.add_layer_norm.reference import ReferenceAddLayerNorm
from kolors_ops.geglu import op as geglu
from kolors_ops.geglu.reference import ReferenceGEGLU
from kolors_ops.group_norm_silu import plans as group_norm_silu
from kolors_ops.group_norm_silu.reference import ReferenceGroupNormSiLU
from kolors_ops.operators import Launch, Pick, pick_from

from benchmarks.limits.counted import Counter

Plan = Callable[[tuple[Any, ...], Any, Pick], list[Launch]]
"""(the arguments of a call, its results, how rows of the table are picked) -> its launches."""
DEFINITIONS: Mapping[str, Callable[..., Any]] = {
    "group_norm_silu": ReferenceGroupNormSiLU(),
    "geglu": ReferenceGEGLU(),
    "add_layer_norm": ReferenceAddLayerNorm(),
}


def _group_norm_silu(call: tuple[Any, ...], made: Any, pick: Pick) -> list[Launch]:
    x, weight, bias, groups, eps, silu = call
    statistics = (x.new_empty((x.shape[0], groups), dtype=torch.float32) for _ in range(2))
    given = group_norm_silu.Forward(x, weight, bias, made, *statistics)
    return group_norm_silu.plan_forward(given, group_norm_silu.scratch_forward(x, groups, pick), eps, silu, pick)


def _geglu(call: tuple[Any, ...], made: Any, pick: Pick) -> list[Launch]:
    return geglu.plan_forward(call[0], made, pick)


def _add_layer_norm(call: tuple[Any, ...], made: Any, pick: Pick) -> list[Launch]:
    x, added, weight, bias, eps = call
    statistics = (x.new_empty(x.shape[:-1], dtype=torch.float32) for _ in range(2))
    return add_layer_norm.plan_forward(x, added, (weight, bias), eps, (*made, *statistics), pick)


PLANS: Mapping[str, Plan] = {
    "group_norm_silu": _group_norm_silu,
    "geglu": _geglu,
    "add_layer_norm": _add_layer_norm,
}


class PlannedOp:
    """An op that counts its own launches, as planned for a family of GPUs."""

    def __init__(self, kind: str, *, family: str, counter: Counter) -> None:
        self.kind, self.counter, self.pick = kind, counter, pick_from("", family)

    def __call__(self, *call: Any, **how: Any) -> Any:
        """Return the op's results, made without being counted."""
        with self.counter.paused():
            made = DEFINITIONS[self.kind](*call, **how)
            launches = PLANS[self.kind]((*call, *how.values()), made, self.pick)
        for each in launches:  # a kernel of this project reads or writes each of its tensors once
            self.counter.add(each.row.kernel, each.arguments, ())
        return made
