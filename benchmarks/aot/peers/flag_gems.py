"""Group norm of FlagGems, which has no SiLU: the wheel's own functions and kernels.

The package asks for a GPU when it is imported, so its module is loaded alone, among stand-ins for what it imports:
a device that is entered, a cache of launches that keeps none, and libdevice's rsqrt.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from kolors_ops.operators import Launch, Pick, Sample
from torch import Tensor

from benchmarks.aot.peers.recorded import recording
from benchmarks.aot.peers.shapes import EPS, GROUPS, norms, tensors

PACKAGE, INSTALL = "flag_gems", "pip install --no-deps flag-gems==5.0.2"
KERNELS = ("group_norm_kernel", "group_norm_backward_kernel", "weight_bias_backward_kernel")


def samples(dtype: torch.dtype) -> Iterator[Sample]:
    """Yield forward and backward of each group norm of the SDXL U-Net."""
    for shape in norms():
        x, weight = tensors(shape, dtype)
        yield Sample(f"{shape.name} forward", partial(_forward, x, weight))
        yield Sample(f"{shape.name} backward", partial(_backward, x, weight))


def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the group norm of x [B, C, ...] in Triton's interpreter.

    There `and` of two masks is the second of them, so it is made the `&` that it means.
    """
    made: Tensor = module(interpreted=True).group_norm(x, weight, bias, *_sizes(x), EPS)[0]
    return made


def gradient(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias in Triton's interpreter, from its own mean and rstd."""
    gems = module(interpreted=True)
    _, mean, rstd = gems.group_norm(x, weight, bias, *_sizes(x), EPS)
    found: tuple[Tensor, Tensor, Tensor] = gems.group_norm_backward(
        grad, x, mean, rstd, weight, *_sizes(x), (True, True, True)
    )
    return found


@cache
def module(*, interpreted: bool = False) -> ModuleType:
    """Return the wheel's module. Raises ModuleNotFoundError when it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"No module named {PACKAGE!r}", name=PACKAGE)
    folder = Path(spec.submodule_search_locations[0])
    before = {name: found for name, found in sys.modules.items() if name.partition(".")[0] == PACKAGE}
    for name in before:
        del sys.modules[name]
    try:
        _stand_in(interpreted)
        sys.modules["flag_gems.utils"].triton_lang_extension = _load(  # type: ignore[attr-defined]
            "flag_gems.utils.triton_lang_extension", folder / "utils/triton_lang_extension.py"
        )
        source = folder / "ops/groupnorm.py"
        return _load("flag_gems.ops.groupnorm", _with_masks_joined(source) if interpreted else source)
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
            del sys.modules[name]
        sys.modules.update(before)


def _stand_in(interpreted: bool) -> None:
    rsqrt = import_module("benchmarks.aot.interpreting" if interpreted else "triton.language.extra.libdevice").rsqrt

    def as_it_is(function: Any) -> Any:
        return function

    contents: dict[str, dict[str, Any]] = {
        "flag_gems": {},
        "flag_gems.runtime": {"torch_device_fn": SimpleNamespace(device=nullcontext)},
        "flag_gems.utils": {"libentry": lambda: as_it_is, "tl_extra_shim": SimpleNamespace(rsqrt=rsqrt)},
        "flag_gems.utils.triton_lang_helper": {"use_tl_extra": as_it_is},
    }
    for name, content in contents.items():
        made = ModuleType(name)
        vars(made).update(content)
        sys.modules[name] = made


def _load(name: str, file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    spec.loader.exec_module(made)
    return made


class _Joined(ast.NodeTransformer):
    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        self.generic_visit(node)
        joined, *others = node.values
        if isinstance(node.op, ast.Or):
            return node
        for other in others:
            joined = ast.BinOp(joined, ast.BitAnd(), other)
        return joined


def _with_masks_joined(source: Path) -> Path:
    """Write the module anew, `and` made `&`; the interpreter reads kernels from their file."""
    made = Path(tempfile.mkdtemp(prefix="flag_gems_")) / source.name
    tree = ast.fix_missing_locations(_Joined().visit(ast.parse(source.read_text(encoding="utf-8"))))
    made.write_text(ast.unparse(tree), encoding="utf-8")
    return made


def _sizes(x: Tensor) -> tuple[int, int, int, int]:
    """Return batch, channels, pixels and groups."""
    return x.shape[0], x.shape[1], x[0, 0].numel(), GROUPS


def _forward(x: Tensor, weight: Tensor, pick: Pick) -> list[Launch]:
    gems = module()
    with recording(gems, KERNELS) as launches:
        gems.group_norm(x, weight, weight, *_sizes(x), EPS)
    return launches


def _backward(x: Tensor, weight: Tensor, pick: Pick) -> list[Launch]:
    gems, statistics = module(), x.new_empty((x.shape[0], GROUPS))
    with recording(gems, KERNELS) as launches:
        gems.group_norm_backward(x, x, statistics, statistics, weight, *_sizes(x), (True, True, True))
    return launches
