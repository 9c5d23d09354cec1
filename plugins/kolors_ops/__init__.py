"""The ops of the backbone, each in several implementations, and the recipe that tunes their kernels."""

from importlib.resources import files
from importlib.resources.abc import Traversable

from kolors_kernel import ComponentConfig, hookimpl


@hookimpl
def kolors_components() -> list[type[ComponentConfig]]:
    """Return every implementation of every op, and the recipe."""
    from kolors_ops.config import COMPONENTS

    return [*COMPONENTS]


@hookimpl
def kolors_recipes() -> list[Traversable]:
    """Return the folder of the recipe."""
    return [files("kolors_ops") / "recipes"]
