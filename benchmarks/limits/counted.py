"""Launches, the bytes that they move and the products that they compute, counted on tensors without memory.

Each operator of torch is a launch that reads its inputs and writes its results once. Two are more than one on CUDA: a
group norm reads its input for the moments and again to use them, with a small launch between; and a convolution by
cuDNN first copies an input or a weight that lies in another layout, and adds its bias in a launch of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
UNREAD = ("aten::fill_", "aten::zero_", "aten::copy_", "aten::new_full", "aten::new_zeros", "aten::new_ones")
"""Operators that do not read their first argument, but write to it or make another like it."""


@dataclass(frozen=True)
class Launched:
    """One launch: of what, by which module, for which call of an op at a shape, where it is for one; bytes read and
    written, and operations of products.
    """

    name: str
    path: str
    op: str
    shape: str
    call: int
    moved: int
    flop: int


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, every launch that torch would do on CUDA is counted instead, on tensors of "meta"."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launched: list[Launched] = []
        self._paths, self._call, self._paused = [""], ("", "", 0), False
        self._calls: dict[tuple[str, str], int] = {}

    def watch(self, net: nn.Module) -> None:
        """Have each launch of a net be told by its module's path."""
        for path, module in net.named_modules():
            module.register_forward_pre_hook(lambda module, inputs, path=path: self._paths.append(path))
            module.register_forward_hook(lambda module, inputs, result: self._leave())

    @contextmanager
    def during(self, op: str, *, shape: str = "") -> Iterator[None]:
        """Count what happens in here for an op at a shape."""
        number = self._calls[op, shape] = self._calls.get((op, shape), 0) + 1
        before, self._call = self._call, (op, shape, number)
        try:
            yield
        finally:
            self._call = before

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing of what happens in here."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def add(self, name: str, read: Iterable[Any], written: Iterable[Any], *, flop: int = 0) -> None:
        """Count a launch that reads and writes these tensors, each once."""
        moved = size_of(read) + size_of(written)
        self.launched.append(Launched(name, self._paths[-1], *self._call, moved, flop))

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        """Call an operator and count its launches."""
        if not self._paused:
            if func is aten.convolution.default:
                return self._convolution(*args)
            if func is aten.native_group_norm.default:
                return self._group_norm(*args)
        result = func(*args, **(kwargs or {}))
        if not self._paused and not _launches_nothing(func, (args, kwargs), result):
            read = args[1:] if func._schema.name in UNREAD else args
            self.add(func._schema.name, (read, kwargs), result, flop=_flop(func, args, kwargs or {}, result))
        return result

    def _convolution(self, x: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> Tensor:
        """As torch does it by cuDNN: everything has its channels last where x or the weight has."""
        last = any(t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous() for t in (x, weight))
        layout = torch.channels_last if last else torch.contiguous_format
        with self:
            x, weight = (t if t.is_contiguous(memory_format=layout) else _copied(t, layout) for t in (x, weight))
        func = aten.convolution.default
        result: Tensor = func(x, weight, None, *how)
        self.add(func._schema.name, (x, weight), result, flop=_flop(func, (x, weight, None, *how), {}, result))
        made = torch.empty_like(result, memory_format=layout)  # without memory, torch lays it out in another way
        if bias is not None:
            with self:
                made.add_(bias.view(-1, *(1,) * (x.ndim - 2)))
        return made

    def _group_norm(self, x: Tensor, weight: Tensor, bias: Tensor, *how: Any) -> Any:
        """Moments of each group, then a scale and a shift for each channel, then their use."""
        out, mean, deviation = aten.native_group_norm.default(x, weight, bias, *how)
        per_channel = [x.new_empty(x.shape[:2], dtype=torch.float32) for _ in range(2)]
        self.add("group norm: moments", (x,), (mean, deviation))
        self.add("group norm: scale and shift", (mean, deviation, weight, bias), per_channel)
        self.add("group norm: use", (x, per_channel), out)
        return out, mean, deviation

    def _leave(self) -> None:
        self._paths.pop()


def size_of(tensors: Any) -> int:
    """Return the bytes of the tensors in a tree: memory that several of them look at counts once, and so does what a
    stride of 0 repeats.
    """
    distinct: dict[tuple[int, int, int], int] = {}
    for t in tree_leaves(tensors):
        if isinstance(t, Tensor):
            sizes = (size for size, stride in zip(t.shape, t.stride(), strict=True) if stride)
            size = t.element_size() * math.prod(sizes)
            distinct[_memory_of(t), int(t.storage_offset()), size] = size
    return sum(distinct.values())


def _copied(t: Tensor, layout: torch.memory_format) -> Tensor:
    made: Tensor = aten.clone.default(t, memory_format=layout)
    return made


def _launches_nothing(func: Any, given: Any, result: Any) -> bool:
    """Tell whether an operator only allocates, or only looks at the memory of its inputs in another way."""
    if func._schema.name.startswith(("aten::empty", "aten::new_empty")):
        return True
    made = _memory(result)
    return not func._schema.is_mutable and bool(made) and made <= _memory(given)


def _memory(tensors: Any) -> set[int]:
    return {_memory_of(t) for t in tree_leaves(tensors) if isinstance(t, Tensor)}


def _memory_of(t: Tensor) -> int:
    return int(t.untyped_storage()._cdata)


def _flop(func: Any, args: Sequence[Any], kwargs: Any, result: Any) -> int:
    """Return the operations of matrix products, convolutions and attention; of other operators 0."""
    counted = flop_registry.get(func._overloadpacket)
    return 0 if counted is None else int(counted(*args, **kwargs, out_val=result))
