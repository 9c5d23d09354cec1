"""What a recipe can say about the work on stores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, PositiveInt

from kolors_kernel.component import BuildContext
from kolors_kernel.kinds import RecipeConfig, WorkersConfig
from kolors_zarr.buckets_config import BucketsConfig, OwnBuckets
from kolors_zarr.collections_config import CollectionConfig, ImageFolderConfig

if TYPE_CHECKING:
    from kolors_kernel.graph import Graph
    from kolors_zarr.importing.job import ImportJob

_SDXL: Any = {"type": "sdxl"}
_POOL: Any = {"type": "pool"}


class ImportSamples(RecipeConfig):
    """Bring pictures with their captions and tags into a new store, in buckets (2.2.1, 2.2.2).

    What cannot be used is left out and listed with the reason in refused.jsonl of the store. A run that was killed
    goes on when the same command is given again.
    """

    type: Literal["import_samples"] = "import_samples"
    data: CollectionConfig
    """What is imported."""
    path: str = "store.zarr"
    """The new store: a folder below that of the run, an absolute one, or a URL (s3://, gs://, az://, memory:// ...)."""
    buckets: BucketsConfig = Field(default=_SDXL, validate_default=True)
    """The sizes that pictures are trained at, and which pictures are refused."""
    keep: Literal["encoded", "pixels"] = "encoded"
    """What is stored: the pictures as they came, or pixels brought to the bucket, which need no decoding any more and
    several times the room."""
    shard: PositiveInt = 256
    """Samples in a shard, which is what one worker writes in one go."""
    without_caption: Literal["keep", "refuse"] = "keep"
    """Whether pictures without any caption are stored."""
    workers: WorkersConfig = Field(default=_POOL, validate_default=True)
    """Who does the work."""

    @classmethod
    def tiny(cls) -> Self:
        """Return three pictures of 8 to 12 pixels into three buckets."""
        return cls(data=ImageFolderConfig.tiny(), buckets=OwnBuckets.tiny())

    def graphs(self) -> Mapping[str, Graph]:
        """Return what is done with a piece of the list, and with a single input."""
        from kolors_zarr.importing.job import graphs_of

        return graphs_of(self)

    def build(self, ctx: BuildContext) -> ImportJob:
        """Return the job; nothing is read yet."""
        from kolors_zarr.importing.job import ImportJob

        return ImportJob(self, ctx)


COMPONENTS = [ImportSamples]
