"""What of a run on a GPU can be done without one: plan every launch, compile it, and ask each op if it takes a call."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

from kolors_ops import operators
from kolors_ops.table import family_of

from benchmarks.aot.launches import Unplanned, figures_at, op_modules, planned
from benchmarks.on_device.contenders import OURS
from benchmarks.on_device.rows import BENCH, Compiled
from benchmarks.report import Note


def compiled(kinds: Sequence[str], dtypes: Sequence[str], family: str) -> Iterator[Compiled | Note]:
    """Yield every distinct launch of the ops' samples as it is compiled for a family; a note where there is no row."""
    modules = _modules(kinds)
    for kind in (kind for kind in kinds if _module(kind) not in modules):
        yield Note(BENCH, kind, OURS, "the op has no samples")
    seen = set()
    for each in planned(modules, dtypes, [family]):
        case = f"{each.place.module.split('.')[-2]} {each.shape}"
        if isinstance(each, Unplanned):
            yield Note(BENCH, f"{case} {each.place.dtype}", OURS, each.reason)
        elif each.noted.identity not in seen:
            seen.add(each.noted.identity)
            yield Compiled(case, each.place.dtype, each.kernel, family, figures_at(each.place))


@contextmanager
def as_if_on(family: str, kinds: Sequence[str]) -> Iterator[None]:
    """Have the ops take tensors on meta for those of a GPU of the family: what they refuse there, they refuse here."""
    here = {"unsupported": operators.unsupported, "family_of": family_of}
    there = {"unsupported": lambda x: None, "family_of": lambda device: family}
    modules = [module for name, module in sys.modules.items() if _is_of(name, kinds) or module is operators]
    with ExitStack() as changed:
        for module in modules:
            for name, known in here.items():
                if getattr(module, name, None) is known:  # as it was imported by name
                    changed.enter_context(patch.object(module, name, there[name]))
        yield


def _is_of(module: str, kinds: Sequence[str]) -> bool:
    return any(module.startswith(f"kolors_ops.{kind}.") for kind in kinds)


def _modules(kinds: Sequence[str]) -> list[str]:
    return [name for name in op_modules() if name in set(map(_module, kinds))]


def _module(kind: str) -> str:
    return f"kolors_ops.{kind}.op"
