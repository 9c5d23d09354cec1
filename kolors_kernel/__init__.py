"""The microkernel of Kolors: registries, typed interfaces, recipes and graphs. It never imports torch."""

from kolors_kernel.component import BuildContext, ComponentConfig
from kolors_kernel.hookspecs import hookimpl
from kolors_kernel.recipe_file import load_recipe
from kolors_kernel.registry import Registry, discover

__all__ = ["BuildContext", "ComponentConfig", "Registry", "discover", "hookimpl", "load_recipe"]
__version__ = "0.1.0"
