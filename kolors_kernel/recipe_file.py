"""Recipe files: YAML with line numbers, `base:` and its merge rule, settings laid on top, and writing one back."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import yaml
from pydantic import ValidationError

from kolors_kernel.component import RecipePath
from kolors_kernel.errors import RecipeError
from kolors_kernel.kinds import RecipeConfig
from kolors_kernel.registry import Registry, discover

Loc: TypeAlias = tuple[str | int, ...]
NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass
class Tree:
    """What a recipe file says, and at which file and line each key says it."""

    data: Any
    marks: dict[Loc, str]
    twice: list[str] = field(default_factory=list)  # what there is to say about keys that stand twice

    def mark(self, loc: Loc) -> str:
        """Return "file:line" of the nearest key at or above `loc`."""
        return next((self.marks[loc[:n]] for n in range(len(loc), -1, -1) if loc[:n] in self.marks), "recipe")


def load_recipe(
    name_or_path: str | Path, settings: Mapping[str, Any] = NOTHING, *, registry: Registry | None = None
) -> RecipeConfig:
    """Read a recipe by the name of a shipped one or by its path, lay `settings` on it and validate it.

    `settings` maps dotted keys ("stages.0.steps") to values. Raises RecipeError with every mistake of the file at
    once, each with file, line and key.
    """
    registry = registry or discover()
    tree = _read_with_bases(_locate(str(name_or_path), registry), registry, ())
    # From the outside in, and a type before its siblings: what replaces a whole goes before what changes a part.
    for key in sorted(settings, key=lambda key: (key.count("."), key.rpartition(".")[2] != "type")):
        _set(tree, key, settings[key])
    lines = list(tree.twice)
    try:
        recipe = RecipeConfig.model_validate(tree.data, context={"registry": registry})
    except ValidationError as error:
        lines += [_line(tree, each["loc"], each["msg"]) for each in error.errors(include_url=False)]
    if lines:
        raise RecipeError("\n".join(dict.fromkeys(lines)))
    return recipe


def parse_setting(text: str) -> tuple[str, Any]:
    """Split "a.b.0.c=value" into key and value, the value read as YAML; paths are relative to the working folder."""
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise RecipeError(f"--set {text}: expected KEY=VALUE, as in stages.0.steps=10")
    tree = Tree(None, {})
    try:
        tree.data = _construct(yaml.compose(value, Loader=_Loader), Path.cwd(), f"--set {key}", (), tree)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {text}: the value is not YAML: {_problem(error)}") from None
    if tree.twice:
        raise RecipeError("\n".join(tree.twice))
    return key, tree.data


def write_recipe(recipe: RecipeConfig, path: Path) -> None:
    """Write a recipe with every setting spelled out, whole or not at all; running that file gives the same run."""
    text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _locate(name: str, registry: Registry) -> Path:
    if name.endswith((".yaml", ".yml")) or os.sep in name:
        if not Path(name).is_file():
            raise RecipeError(f"there is no recipe file {name}")
        return Path(name).resolve()
    shipped = registry.recipe(name)
    if shipped is None:
        known = registry.recipe_names()
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else "."
        raise RecipeError(f"no recipe is called '{name}'{hint} Known: {', '.join(known)}; a file ends in .yaml")
    return Path(str(shipped)).resolve()


def _read_with_bases(path: Path, registry: Registry, above: tuple[Path, ...]) -> Tree:
    tree, chain = _read(path), (*above, path)
    base = tree.data.pop("base", None)
    if base is None:
        return tree
    name = str(path.parent / base) if str(base).endswith((".yaml", ".yml")) else str(base)
    try:
        found = _locate(name, registry)
    except RecipeError as error:
        raise RecipeError(f"{tree.mark(('base',))}: base: {error}") from None
    if found in chain:
        circle = " -> ".join(p.name for p in (*chain[chain.index(found) :], found))
        raise RecipeError(f"{tree.mark(('base',))}: base: goes in a circle: {circle}")
    below = _read_with_bases(found, registry, chain)
    merged = merge(below, tree)
    merged.twice = below.twice + tree.twice
    return merged


def merge(base: Tree, over: Tree, at: Loc = ()) -> Tree:
    """Lay one tree on another: mappings merge key by key, unless `over` names a different type; all else replaces."""
    below, above = base.data, over.data
    mappings = isinstance(above, dict) and isinstance(below, dict)
    if not mappings or above.get("type", below.get("type")) != below.get("type"):
        kept = {loc: mark for loc, mark in base.marks.items() if loc[: len(at)] != at}
        return Tree(above, {**kept, **{loc: mark for loc, mark in over.marks.items() if loc[: len(at)] == at}})
    data, marks = dict(below), {**base.marks, **({at: over.marks[at]} if at in over.marks else {})}
    for key, value in above.items():
        part = merge(Tree(data.get(key), marks), Tree(value, over.marks), (*at, key))
        data[key], marks = part.data, part.marks
    return Tree(data, marks)


class _Loader(yaml.SafeLoader):
    """YAML without anchors: one place for a value, and no file that unfolds to gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="anchors and aliases are not used in recipes", problem_mark=mark)
        return super().compose_node(parent, index)


def _read(path: Path) -> Tree:
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=_Loader)
        tree = Tree(None, {})
        tree.data = _construct(root, path.parent, _shown(path), (), tree)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RecipeError(f"{_shown(path)}{line}: {error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{_shown(path)}: not a YAML text: {_problem(error)}") from None
    except OSError as error:
        raise RecipeError(f"{_shown(path)} cannot be read: {error.strerror}") from None
    except RecursionError:
        raise RecipeError(f"{_shown(path)}: nested too deeply to be a recipe") from None
    if not isinstance(tree.data, dict):
        held = "nothing" if tree.data is None else f"a {type(tree.data).__name__}"
        raise RecipeError(f"{_shown(path)}: a recipe is a mapping of settings, this file holds {held}")
    return tree


def _construct(node: Any, folder: Path, file: str, at: Loc, tree: Tree) -> Any:
    """Turn a YAML node into plain data, noting in `tree` where each key stands and which stand twice."""
    if node is None:
        return None
    marks = tree.marks
    marks.setdefault(at, f"{file}:{node.start_mark.line + 1}")
    if isinstance(node, yaml.MappingNode):
        made: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key, line = str(key_node.value), f"{file}:{key_node.start_mark.line + 1}"
            if key in made:
                said = f"{line}: {_dotted((*at, key))}: this key stands twice; first at {marks[(*at, key)]}"
                tree.twice.append(said)
            marks[(*at, key)] = line
            made[key] = _construct(value_node, folder, file, (*at, key), tree)
        return made
    if isinstance(node, yaml.SequenceNode):
        return [_construct(item, folder, file, (*at, i), tree) for i, item in enumerate(node.value)]
    value = _Loader("").construct_object(node)
    return RecipePath(value, folder) if isinstance(value, str) else value


def _set(tree: Tree, key: str, value: Any) -> None:
    """Lay one dotted setting on the tree; a `type` that changes drops the settings of the old one."""
    *parents, last = (int(part) if part.isdecimal() else part for part in key.split("."))
    here: Any = tree.data
    at: Loc = ()
    for part in parents:
        here, at = _step_into(here, part, key), (*at, part)
    if isinstance(here, dict):
        if last == "type" and here.get("type") != value:
            here.clear()
            _mark_anew(tree, at)
        last = str(last)
    _step_into(here, last, key)
    here[last] = value
    _mark_anew(tree, (*at, last))


def _mark_anew(tree: Tree, at: Loc) -> None:
    tree.marks = {loc: mark for loc, mark in tree.marks.items() if loc[: len(at)] != at} | {at: "--set"}


def _step_into(here: Any, part: str | int, key: str) -> Any:
    if isinstance(here, list):
        if not isinstance(part, int) or part >= len(here):
            raise RecipeError(f"--set {key}: '{part}' is not an index of a list of {len(here)}")
        return here[part]
    if not isinstance(here, dict):
        raise RecipeError(f"--set {key}: there is nothing below '{here}' that '{part}' could name")
    if here.get(str(part)) is None:
        here[str(part)] = {}
    return here[str(part)]


def _line(tree: Tree, loc: Loc, message: str) -> str:
    where = f"{_dotted(loc)}: " if loc else ""
    return f"{tree.mark(loc)}: {where}{message.removeprefix('Value error, ')}"


def _dotted(loc: Loc) -> str:
    return ".".join(str(part) for part in loc)


def _shown(path: Path) -> str:
    """Return the path relative to the working folder where it lies below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _problem(error: Exception) -> str:
    """Return what is wrong in one line, without the name of the parser's state."""
    return str(getattr(error, "problem", None) or str(error).splitlines()[0])
