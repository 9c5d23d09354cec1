"""Every hook has a test named after it, and there are two hooks."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kolors_kernel import discover, hookimpl, hookspecs
from kolors_kernel.registry import assemble


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("plugin_under_test")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def installed(module: ModuleType) -> Any:
    return assemble([EntryPoint("tested", module.__name__, hookspecs.GROUP)])


def hooks() -> set[str]:
    return {name for name, value in vars(hookspecs).items() if hasattr(value, "kolors_spec")}


def test_there_are_two_hooks() -> None:
    assert hooks() == {"kolors_components", "kolors_recipes"}


def test_every_hook_has_a_test() -> None:
    tested = {name.removeprefix("test_hook_") for name in globals() if name.startswith("test_hook_")}
    assert tested == hooks()


def test_every_hook_says_what_it_is_for() -> None:
    assert all(getattr(hookspecs, name).__doc__ for name in hooks())


def test_hook_kolors_components(plugin: ModuleType) -> None:
    euler = discover().find("solver", "euler")
    plugin.kolors_components = hookimpl(lambda: iter([euler]))  # type: ignore[attr-defined]
    registry = installed(plugin)
    assert registry.plugins["tested"].problem is None
    assert registry.components == {("solver", "euler"): euler}
    assert registry.provided_by == {("solver", "euler"): "tested"}


def test_hook_kolors_recipes(plugin: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").touch()
    plugin.kolors_recipes = hookimpl(lambda: [tmp_path])  # type: ignore[attr-defined]
    registry = installed(plugin)
    assert registry.plugins["tested"].problem is None
    assert registry.recipe_names() == ["mine"]
