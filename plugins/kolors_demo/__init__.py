"""The embedded demo: emoji pictures with zh and en captions, a tiny Kolors trained on them, their recipes."""

from importlib.resources import files
from importlib.resources.abc import Traversable

from kolors_kernel import ComponentConfig, hookimpl


@hookimpl
def kolors_components() -> list[type[ComponentConfig]]:
    """Return the prompt set and the metric."""
    from kolors_demo.config import EmojiHits, EmojiPrompts

    return [EmojiHits, EmojiPrompts]


@hookimpl
def kolors_recipes() -> list[Traversable]:
    """Return the folder of the demo's recipes."""
    return [files("kolors_demo") / "recipes"]
