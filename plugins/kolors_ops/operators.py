"""The ops as opaque operators of torch, which compile, export and autograd see whole; and what launches their kernels.

An operator is one function on CPUs (the reference), another on GPUs (which launches kernels), and a fake one that only
allocates. Nothing here imports Triton before a kernel is launched, so all of it works where there is none.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from kolors_ops.table import Row, bits_of, family_of, missing, table_at

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "y", "yes")
"""Whether Triton runs kernels in its interpreter, on CPUs: then the operators launch them there too."""
INSTALLED = importlib.util.find_spec("triton") is not None
MOST_BLOCKS = 65535
"""Along the second and third dimension of a grid, on any GPU."""
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel: over which grid, with which arguments by name, in which configuration."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    row: Row

    def options(self) -> dict[str, Any]:
        """Return everything that Triton is given beside the grid."""
        return {**self.arguments, **self.row.blocks, "num_warps": self.row.warps, "num_stages": self.row.stages}


Pick = Callable[..., Row]
"""(kernel, x, width, case="") -> the row of the table for tensors like x. Raises ValueError when there is none."""


@dataclass(frozen=True)
class Sample:
    """A shape that a model gives an op, planned on tensors without memory: what is compiled where there is no GPU."""

    shape: str
    plan: Callable[[Pick], Sequence[Launch]]


def pick_from(table: str, family: str) -> Pick:
    """Return how rows are looked up in the table of a file ("": the one that ships) for a family of GPUs."""
    rows = table_at(table)

    def pick(kernel: str, x: Tensor, width: int, case: str = "") -> Row:
        return rows.need(kernel, family, bits_of(x), width, case)

    return pick


def launch(plan: Callable[[Pick], Sequence[Launch]], x: Tensor, table: str) -> None:
    """Do the launches that are planned for the device of x, in order."""
    launches = plan(pick_from(table, family_of(x.device)))
    with torch.cuda.device(x.device if x.is_cuda else -1):
        for each in launches:
            each.kernel[each.grid](**each.options())


def operator(
    schema: str, *, fake: Callable[..., Any], reference: Callable[..., Any], kernels: Callable[..., Any]
) -> Any:
    """Register an operator by its schema, "name(Tensor x) -> Tensor", in torch.ops.kolors, and return it."""
    name, _, rest = schema.partition("(")
    full = f"kolors::{name}"
    torch.library.define(full, f"({rest}")
    torch.library.impl(full, "cpu", kernels if INTERPRETED else reference)
    torch.library.impl(full, "cuda", kernels)  # ROCm's devices too are called cuda
    torch.library.register_fake(full, fake)
    return getattr(torch.ops.kolors, name).default


def differentiable(op: Any, *, keep: Callable[..., None], backward: Callable[..., Any]) -> None:
    """Say how gradients go back through an operator: what `keep(ctx, inputs, output)` keeps, `backward` uses."""
    torch.library.register_autograd(op.name(), backward, setup_context=keep)


def differentiable_once(op: Any) -> None:
    """Have a gradient that goes back through an operator, which is a gradient itself, be an error."""

    def refuse(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(f"{op.name()} has no gradient: second derivatives need the op's 'reference', not 'triton'")

    torch.library.register_autograd(op.name(), refuse)


def unsupported(x: Tensor) -> str | None:
    """Say why no kernel can run on tensors like x (device, dtype, no Triton), or return None."""
    if not INSTALLED:
        return "triton is not installed: pip install 'kolors-kernel[triton]'"
    if x.device.type == "cpu" and not INTERPRETED:
        return "the tensors are on a CPU, not on a GPU"
    if x.device.type not in ("cpu", "cuda"):
        return f"the tensors are on {x.device.type}; kernels run on CUDA and ROCm"
    if x.dtype not in DTYPES:
        return f"{x.dtype} is none of {', '.join(str(dtype).removeprefix('torch.') for dtype in DTYPES)}"
    return None


def are_rows(x: Tensor) -> bool:
    """Tell whether x can be seen as rows [R, D] whose elements lie side by side, without a copy."""
    lead = [(size, stride) for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True) if size != 1]
    even = all(outer == size * inner for (_, outer), (size, inner) in pairwise(lead))
    return x.numel() > 0 and x.stride(-1) == 1 and even


def opened(table: str) -> str:
    """Return the name of a table once it is read, since torch.compile cannot. Raises RecipeError when it is none."""
    table_at(table)
    return table


def lacks(table: str, kernels: Sequence[str], x: Tensor, width: int, case: str = "") -> str | None:
    """Say which of these kernels has no row in the table for tensors like x, or return None."""
    rows, family = table_at(table), family_of(x.device)
    for kernel in kernels:
        if rows.pick(kernel, family, bits_of(x), width, case) is None:
            return missing(kernel, family, bits_of(x), width, case)
    return None
