"""Which components are installed: entry points -> pluggy -> one table keyed by (kind, type)."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from importlib.resources.abc import Traversable
from types import MappingProxyType
from typing import Any, cast

import pluggy
from pydantic import ValidationInfo

from kolors_kernel import hookspecs
from kolors_kernel.component import ComponentConfig, is_kind, type_name
from kolors_kernel.errors import PluginError

DISABLE = "KOLORS_DISABLE_PLUGINS"


@dataclass(frozen=True)
class Plugin:
    """One entry point: its name, where it comes from, and why it is not in use, if it is not."""

    name: str
    module: str
    distribution: str
    problem: str | None = None


@dataclass(frozen=True)
class Registry:
    """What `discover` found: plugins by name, components by (kind, type), folders of recipes."""

    plugins: Mapping[str, Plugin]
    components: Mapping[tuple[str, str], type[ComponentConfig]]
    provided_by: Mapping[tuple[str, str], str] = field(default_factory=lambda: MappingProxyType({}))
    recipe_folders: tuple[Traversable, ...] = ()

    def types(self, kind: str) -> list[str]:
        """Return the type names of a kind, sorted."""
        return sorted(t for k, t in self.components if k == kind)

    def kinds(self) -> list[str]:
        """Return the kinds that have a component, sorted."""
        return sorted({kind for kind, _ in self.components})

    def of_kind(self, kind: str) -> Iterator[type[ComponentConfig]]:
        """Yield the config classes of a kind, by type name."""
        for name in self.types(kind):
            yield self.components[kind, name]

    def find(self, kind: str, name: object) -> type[ComponentConfig]:
        """Return the config class of a component. Raises ValueError with the nearest name and broken plugins."""
        found = self.components.get((kind, name)) if isinstance(name, str) else None
        if found is not None:
            return found
        known = self.types(kind)
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        broken = [f"plugin '{p.name}' is not in use: {p.problem}" for p in self.plugins.values() if p.problem]
        beside = f" ({'; '.join(broken)})" if broken else ""
        raise ValueError(f"no {kind} is called {name!r}{hint} Known: {', '.join(known) or 'none'}{beside}")

    def recipe(self, name: str) -> Traversable | None:
        """Return the shipped file NAME.yaml, or None."""
        return next((f for folder in self.recipe_folders if (f := folder / f"{name}.yaml").is_file()), None)

    def recipe_names(self) -> list[str]:
        """Return the names of every shipped recipe, sorted."""
        files = (file.name for folder in self.recipe_folders for file in folder.iterdir())
        return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))


@lru_cache(maxsize=1)
def discover() -> Registry:
    """Load every installed plugin of this API version once; a broken one is kept apart with its error.

    Raises PluginError when two plugins provide the same (kind, type).
    """
    disabled = {name.strip() for name in os.environ.get(DISABLE, "").split(",") if name.strip()}
    return assemble(entry_points(group=hookspecs.GROUP), disabled=disabled, foreign=_of_other_versions())


def assemble(
    found: Iterable[EntryPoint],
    *,
    disabled: Set[str] = frozenset(),
    foreign: Mapping[str, Plugin] = MappingProxyType({}),
) -> Registry:
    """Build a registry from entry points; `foreign` are listed as they are and never imported.

    So are the names in `disabled`, installed or not: a mistyped one is to be seen.
    """
    absent = f"named in {DISABLE}, but not installed"
    plugins = {**{name: Plugin(name, "-", "-", absent) for name in sorted(disabled)}, **foreign}
    seen: set[str] = set()
    components: dict[tuple[str, str], type[ComponentConfig]] = {}
    provided_by: dict[tuple[str, str], str] = {}
    folders: list[Traversable] = []
    for entry in sorted(found, key=lambda e: e.name):
        plugin = Plugin(entry.name, entry.value, entry.dist.name if entry.dist else "?")
        if entry.name in seen:
            both = f"{plugins[entry.name].distribution} and {plugin.distribution}"
            raise PluginError(f"two plugins are called '{entry.name}': {both}; uninstall one")
        seen.add(entry.name)
        plugins[entry.name] = plugin
        if entry.name in disabled:
            plugins[entry.name] = replace(plugin, problem=f"disabled by {DISABLE}")
            continue
        try:
            classes, recipes = _ask(entry)
        except Exception as error:  # the one place where any failure is caught: a stranger's code must not stop us
            problem = " ".join(f"{type(error).__name__}: {error}".split())  # one line, whatever it said
            plugins[entry.name] = replace(plugin, problem=problem)
            continue
        folders += recipes
        for cls in classes:
            key = (cls.kind, type_name(cls))
            if key in provided_by:
                both = f"plugins '{provided_by[key]}' and '{entry.name}' both provide the {key[0]} '{key[1]}'"
                raise PluginError(f"{both}; disable one with {DISABLE}={entry.name}")
            components[key], provided_by[key] = cls, entry.name
    return Registry(plugins, components, provided_by, tuple(folders))


def _ask(entry: EntryPoint) -> tuple[list[type[ComponentConfig]], list[Traversable]]:
    """Import one plugin and call its hooks, in a manager of its own so that a failure concerns it alone."""
    manager = pluggy.PluginManager("kolors")
    manager.add_hookspecs(hookspecs)
    manager.register(entry.load(), name=entry.name)
    manager.check_pending()  # a hook we do not know is a typo
    classes = [cls for found in manager.hook.kolors_components() for cls in cast(Iterable[Any], found)]
    for cls in classes:
        if not (isinstance(cls, type) and issubclass(cls, ComponentConfig)) or is_kind(cls) or not hasattr(cls, "kind"):
            raise PluginError(
                f"kolors_components gave {cls!r}, which is not a component's config class: it needs a kind and a type"
            )
        if inspect.isabstract(cls):
            raise PluginError(f"{cls.__name__} does not define {', '.join(sorted(cls.__abstractmethods__))}")
    return classes, [folder for found in manager.hook.kolors_recipes() for folder in found]


def _of_other_versions() -> dict[str, Plugin]:
    listed = {}
    for group in entry_points().groups:
        version = group.removeprefix(hookspecs.GROUP_PREFIX)
        if group.startswith(hookspecs.GROUP_PREFIX) and group != hookspecs.GROUP:
            for entry in entry_points(group=group):
                problem = f"written for API {version}, this kernel speaks API {hookspecs.API_VERSION}"
                name = entry.dist.name if entry.dist else "?"
                listed[entry.name] = Plugin(entry.name, entry.value, name, problem)
    return listed


def registry_of(info: ValidationInfo) -> Registry:
    """Return the registry of a validation: the one in its context (tests bring their own), or the discovered one."""
    return (info.context or {}).get("registry") or discover()
