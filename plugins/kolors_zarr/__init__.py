"""Pictures, captions, latents and text conditioning in zarr v3 stores (2.2.1, 2.2.2)."""

from kolors_kernel import ComponentConfig, hookimpl


@hookimpl
def kolors_components() -> list[type[ComponentConfig]]:
    """Return the sink and the source."""
    from kolors_zarr.config import ZarrSink, ZarrSource

    return [ZarrSink, ZarrSource]
