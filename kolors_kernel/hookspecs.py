"""The two hooks a plugin may implement, and the entry-point group that announces it."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from kolors_kernel.component import ComponentConfig

API_VERSION = 1
GROUP_PREFIX = "kolors.v"
GROUP = f"{GROUP_PREFIX}{API_VERSION}"
"""Plugins announce themselves in `[project.entry-points."kolors.v1"]`; the API's major is in the name."""

hookspec = pluggy.HookspecMarker("kolors")
hookimpl = pluggy.HookimplMarker("kolors")


@hookspec
def kolors_components() -> Iterable[type[ComponentConfig]]:  # type: ignore[empty-body]
    """Return the config classes of the components this plugin provides. Must not import torch."""


@hookspec
def kolors_recipes() -> Iterable[Traversable]:  # type: ignore[empty-body]
    """Return folders of YAML recipes this plugin ships; `kolors run NAME` finds NAME.yaml in them."""
