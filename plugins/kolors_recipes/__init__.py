"""Recipes: training, sampling, precomputing, evaluating, assembled from components of any plugin."""

from kolors_kernel import hookimpl


@hookimpl
def kolors_components():  # type: ignore[no-untyped-def]
    """Return the recipes and the observers."""
    from kolors_recipes import config, observers_config, training_config

    return [*config.COMPONENTS, *training_config.COMPONENTS, *observers_config.COMPONENTS]
