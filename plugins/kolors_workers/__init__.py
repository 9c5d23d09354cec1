"""Who does independent pieces of work: this process, several of it, or Ray."""

from kolors_kernel import ComponentConfig, hookimpl


@hookimpl
def kolors_components() -> list[type[ComponentConfig]]:
    """Return the two kinds of workers."""
    from kolors_workers.config import Pool, Ray

    return [Pool, Ray]
