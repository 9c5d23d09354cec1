"""Curation: which samples a stage may see (2.2.1)."""

from kolors_kernel import ComponentConfig, hookimpl


@hookimpl
def kolors_components() -> list[type[ComponentConfig]]:
    """Return the filters."""
    from kolors_curation.config import Level, Tags

    return [Level, Tags]
