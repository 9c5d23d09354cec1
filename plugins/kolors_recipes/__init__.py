"""Recipes: training, sampling, precomputing, evaluating, assembled from components of any plugin."""

from kolors_kernel import hookimpl


@hookimpl
def kolors_components():  # type: ignore[no-untyped-def]
    """Return the recipes and the observers."""
    from kolors_recipes import config, drawing_config, export_config, observers_config, training_config

    modules = (drawing_config, config, export_config, training_config, observers_config)
    return [component for module in modules for component in module.COMPONENTS]


@hookimpl
def kolors_recipes():  # type: ignore[no-untyped-def]
    """Return the folder of the recipes for the released model."""
    from importlib.resources import files

    return [files("kolors_recipes") / "recipes"]
