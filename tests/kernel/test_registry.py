from __future__ import annotations

import re
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from kolors_kernel import hookspecs
from kolors_kernel.component import ComponentConfig
from kolors_kernel.registry import Registry, assemble, discover

ROOT = Path(__file__).resolve().parents[2]


def test_discovery_knows_nothing_but_the_entry_points() -> None:
    found = {entry.name for entry in entry_points(group=hookspecs.GROUP)}
    assert set(discover().plugins) == found
    names = {folder.name for folder in (ROOT / "plugins").iterdir() if (folder / "__init__.py").exists()}
    hooks = {"kolors_components", "kolors_recipes"}
    words = {w for path in (ROOT / "kolors_kernel").glob("*.py") for w in re.findall(r"\w+", path.read_text("utf-8"))}
    assert names
    assert names & words <= hooks, "the kernel names a plugin"


def test_discovery_happens_once() -> None:
    assert discover() is discover()


def test_without_entry_points_there_is_nothing() -> None:
    empty = assemble([])
    assert (empty.kinds(), empty.recipe_names(), dict(empty.plugins)) == ([], [], {})
    with pytest.raises(ValueError, match=r"no solver is called 'euler'\. Known: none"):
        empty.find("solver", "euler")


def test_components_are_listed_by_kind_and_type_in_order() -> None:
    registry = discover()
    assert registry.kinds() == sorted(registry.kinds())
    for kind in registry.kinds():
        types = registry.types(kind)
        assert types == sorted(types)
        assert [registry.find(kind, name) for name in types] == list(registry.of_kind(kind))
        assert all(issubclass(cls, ComponentConfig) and cls.kind == kind for cls in registry.of_kind(kind))


def test_a_near_miss_is_answered_with_the_name_meant() -> None:
    with pytest.raises(ValueError, match="no solver is called 'eulr'; did you mean 'euler'"):
        discover().find("solver", "eulr")


def test_recipes_are_found_by_name_in_every_folder(tmp_path: Path) -> None:
    for folder, name in (("one", "first.yaml"), ("two", "second.yaml"), ("two", "notes.txt")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).touch()
    registry = Registry({}, {}, recipe_folders=(tmp_path / "one", tmp_path / "two"))
    assert registry.recipe_names() == ["first", "second"]
    assert registry.recipe("second") == tmp_path / "two" / "second.yaml"
    assert registry.recipe("third") is None
