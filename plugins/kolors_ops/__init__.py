"""The ops of the backbone, each in several implementations."""

from kolors_kernel import ComponentConfig, hookimpl


@hookimpl
def kolors_components() -> list[type[ComponentConfig]]:
    """Return every implementation of every op."""
    from kolors_ops.config import COMPONENTS

    return [*COMPONENTS]
