"""What a recipe can say about stores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, PositiveInt

from kolors_kernel.component import BuildContext, ExistingPath
from kolors_kernel.kinds import CaptionMixConfig, DataSinkConfig, DataSourceConfig, SampleFilterConfig

if TYPE_CHECKING:
    from kolors_zarr.source import ZarrDataSource
    from kolors_zarr.writer import ZarrStoreWriter

_MIX: Any = {"type": "mix"}


class ZarrSink(DataSinkConfig):
    """Writes samples into a new zarr v3 store, whole or not at all."""

    type: Literal["zarr"] = "zarr"
    path: Path = Path("store.zarr")
    """The store's folder, which must not exist yet: below the folder of the run, or absolute."""

    @classmethod
    def tiny(cls) -> Self:
        """Return a sink to a new place in a temporary folder that is removed when the process ends."""
        from kolors_zarr.tiny import temporary_path

        return cls(path=temporary_path())

    def build(self, ctx: BuildContext) -> ZarrStoreWriter:
        """Make the sink; nothing is written yet."""
        from kolors_zarr.writer import ZarrStoreWriter

        return ZarrStoreWriter(ctx.out / self.path)


class ZarrSource(DataSourceConfig):
    """Yields batches of a zarr store: pictures or latents of one shape, with captions or stored conditioning."""

    type: Literal["zarr"] = "zarr"
    path: ExistingPath
    """The store's folder."""
    pictures: Literal["images", "latents"] = "images"
    """Whether batches hold the pictures themselves or the latents precomputed from them."""
    text: Literal["captions", "conditioning"] = "captions"
    """Whether batches hold caption text or the conditioning precomputed from it."""
    resolution: PositiveInt = 64
    """The side of the square the pictures are resized and centre-cropped to, in pixels; latents keep theirs."""
    batch: PositiveInt = 32
    """Samples per batch on each rank. The last batch of an epoch is filled up with copies of weight 0."""
    captions: CaptionMixConfig = Field(default=_MIX)
    """Which of a sample's captions it is trained with in an epoch."""
    filters: list[SampleFilterConfig] = Field(default_factory=list)
    """Which samples are used: those that no filter drops."""
    cache: bool = True
    """Whether what was read stays in memory: pictures as bytes at the resolution, latents and conditioning as stored.
    Turn it off for sets that do not fit."""

    @classmethod
    def tiny(cls) -> Self:
        """Return a source of six pictures of 8 pixels, in a temporary folder removed when the process ends."""
        from kolors_zarr.tiny import tiny_store

        return cls(path=tiny_store(), resolution=8, batch=4)

    def ports(self) -> frozenset[Literal["images", "latents", "captions", "conditioning"]]:
        """Return the two fields chosen by `pictures` and `text`."""
        return frozenset({self.pictures, self.text})

    def picture_size(self) -> tuple[int, int] | None:
        """Return the square of `resolution`; latents have no such size."""
        return (self.resolution, self.resolution) if self.pictures == "images" else None

    def build(self, ctx: BuildContext) -> ZarrDataSource:
        """Open the store. Raises DataError when it is not whole, or has not what is asked for."""
        from kolors_zarr.reader import Store
        from kolors_zarr.source import ZarrDataSource

        return ZarrDataSource(
            Store(self.path),
            self.captions.build(ctx),
            pictures=self.pictures,
            text=self.text,
            resolution=self.resolution,
            batch=self.batch,
            filters=[(each.type, each.build(ctx)) for each in self.filters],
            cache=self.cache,
        )


COMPONENTS = [ZarrSink, ZarrSource]
