"""Noise schedules: the base, the released and the exact extension, the rivals (2.2.2)."""

from importlib.resources import files
from importlib.resources.abc import Traversable

from kolors_kernel import ComponentConfig, hookimpl


@hookimpl
def kolors_components() -> list[type[ComponentConfig]]:
    """Return the schedules and the recipe that compares them."""
    from kolors_schedules.config import COMPONENTS

    return [*COMPONENTS]


@hookimpl
def kolors_recipes() -> list[Traversable]:
    """Return the folder of figure5.yaml."""
    return [files("kolors_schedules") / "recipes"]
