"""Captions: describing pictures, and choosing between original and synthetic text (2.1.2)."""

from kolors_kernel import ComponentConfig, hookimpl


@hookimpl
def kolors_components() -> list[type[ComponentConfig]]:
    """Return the mix and the captioner by measurement."""
    from kolors_captioners.config import Mix, Palette

    return [Mix, Palette]
