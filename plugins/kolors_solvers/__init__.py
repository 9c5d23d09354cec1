"""Solvers and classifier-free guidance."""

from kolors_kernel import ComponentConfig, hookimpl


@hookimpl
def kolors_components() -> list[type[ComponentConfig]]:
    """Return the solvers and the guidance."""
    from kolors_solvers.config import COMPONENTS

    return [*COMPONENTS]
