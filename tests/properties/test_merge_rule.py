"""The merge rule of recipes: mappings merge key by key unless the type differs; everything else replaces."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import given

from kolors_kernel.recipe_file import Loc, Tree, merge
from kolors_kernel.testing.strategies import recipe_trees


def tree(data: Any, name: str) -> Tree:
    return Tree(data, {loc: f"{name}:{number}" for number, (loc, _) in enumerate(walk(data))})


def walk(data: Any, at: Loc = ()) -> Iterator[tuple[Loc, Any]]:
    yield at, data
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in inner:
        yield from walk(value, (*at, key))


def merged(base: Any, over: Any) -> Any:
    return merge(tree(base, "base"), tree(over, "over")).data


def plain(base: Any, over: Any) -> Any:
    """Return the rule in its shortest form."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    if "type" in over and over["type"] != base.get("type"):
        return over
    return {key: plain(base.get(key), over[key]) if key in over else base[key] for key in {**base, **over}}


@given(recipe_trees(), recipe_trees())
def test_it_is_the_rule_in_its_shortest_form(base: Any, over: Any) -> None:
    assert merged(base, over) == plain(base, over)


@given(recipe_trees())
def test_a_recipe_on_itself_or_on_nothing_is_itself(base: Any) -> None:
    assert merged(base, base) == base
    assert merged(base, {}) == base
    assert merged({}, base) == base


@given(recipe_trees(), recipe_trees())
def test_laying_the_same_on_top_again_changes_nothing(base: Any, over: Any) -> None:
    once = merged(base, over)
    assert merged(once, over) == once


@given(recipe_trees(), recipe_trees())
def test_what_lies_on_top_is_what_counts(base: Any, over: Any) -> None:
    found = dict(walk(merged(base, over)))
    for loc, value in walk(over):
        if not isinstance(value, dict):
            assert found[loc] == value


@given(recipe_trees(), recipe_trees())
def test_neither_recipe_is_changed(base: Any, over: Any) -> None:
    before = copy.deepcopy((base, over))
    merged(base, over)
    assert (base, over) == before


@given(recipe_trees(), recipe_trees())
def test_every_place_is_marked_by_who_said_it(base: Any, over: Any) -> None:
    below, above = tree(base, "base"), tree(over, "over")
    found = merge(below, above)
    said_above = dict(walk(over))
    for loc, _ in walk(found.data):
        assert found.marks[loc] == (above.marks[loc] if loc in said_above else below.marks[loc])
    assert set(found.marks) == {loc for loc, _ in walk(found.data)}, "a mark of what is gone would mislead"
