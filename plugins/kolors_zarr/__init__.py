"""Pictures, captions, latents and text conditioning in zarr v3 stores (2.2.1, 2.2.2)."""

from kolors_kernel import ComponentConfig, hookimpl


@hookimpl
def kolors_components() -> list[type[ComponentConfig]]:
    """Return the sink, the source, the buckets, what can be imported, and the recipes."""
    from kolors_zarr import buckets_config, collections_config, config, recipes_config, tools_config

    parts = (config, buckets_config, collections_config, recipes_config, tools_config)
    return [each for part in parts for each in part.COMPONENTS]
