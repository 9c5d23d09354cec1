"""What a recipe can say about looking at stores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, PositiveInt

from kolors_kernel.component import BuildContext, ExistingPath
from kolors_kernel.kinds import RecipeConfig, WorkersConfig
from kolors_zarr.buckets_config import BucketsConfig
from kolors_zarr.config import StorePath

if TYPE_CHECKING:
    from kolors_kernel.graph import Graph
    from kolors_zarr.tools.inspect import InspectJob
    from kolors_zarr.tools.verify import VerifyJob

_POOL: Any = {"type": "pool"}


class InspectStore(RecipeConfig):
    """Count what is in a store and draw it: report.json, histogram.png and contact_sheet.png (2.2.1, 2.2.2).

    All counts come from the store's index, so that ten million samples take seconds; only the contact sheet reads
    pictures, a few of each bucket.
    """

    type: Literal["inspect_store"] = "inspect_store"
    path: StorePath
    """The store: a folder that exists, or a URL (s3://, gs://, az://, https://, memory:// ...)."""
    buckets: BucketsConfig | None = None
    """The sizes that pictures which are kept as they came would be trained at; null: the groups of the store."""
    batch: PositiveInt = 32
    """Samples per batch on each rank, for what an epoch would be."""
    world: PositiveInt = 1
    """How many ranks train, for what an epoch would be."""
    top: PositiveInt = 20
    """How many values of each tag are reported, and how many reasons why inputs were refused: the most frequent."""
    pictures: PositiveInt = 6
    """How many pictures of each bucket are on the contact sheet."""
    font: ExistingPath | None = None
    """A TrueType or OpenType file for the text in the pictures; null: Pillow's own, which has Latin letters only, so
    that Chinese captions are not drawn."""

    @classmethod
    def tiny(cls) -> Self:
        """Return the inspection of six pictures of 8 pixels, in a temporary folder removed when the process ends."""
        from kolors_zarr.tiny import tiny_store

        return cls(path=str(tiny_store()))

    def graphs(self) -> Mapping[str, Graph]:
        """Return what is done with the store."""
        from kolors_zarr.tools.inspect import inspection

        return {"inspect": inspection()}

    def build(self, ctx: BuildContext) -> InspectJob:
        """Return the job; nothing is read yet."""
        from kolors_zarr.tools.inspect import InspectJob

        return InspectJob(self, ctx)


class VerifyStore(RecipeConfig):
    """Read all of a store and compare every checksum; what is damaged is listed in damaged.jsonl.

    Ends with an error when anything is.
    """

    type: Literal["verify_store"] = "verify_store"
    path: StorePath
    """The store: a folder that exists, or a URL (s3://, gs://, az://, https://, memory:// ...)."""
    workers: WorkersConfig = Field(default=_POOL, validate_default=True)
    """Who does the work."""

    @classmethod
    def tiny(cls) -> Self:
        """Return the verification of six pictures, in a temporary folder removed when the process ends."""
        from kolors_zarr.tiny import tiny_store

        return cls(path=str(tiny_store()))

    def graphs(self) -> Mapping[str, Graph]:
        """Return what is done with one shard of each column."""
        from kolors_zarr.tools.verify import verification

        return {"verify": verification()}

    def build(self, ctx: BuildContext) -> VerifyJob:
        """Return the job; nothing is read yet."""
        from kolors_zarr.tools.verify import VerifyJob

        return VerifyJob(self, ctx)


COMPONENTS = [InspectStore, VerifyStore]
