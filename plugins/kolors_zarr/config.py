"""What a recipe can say about stores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError, model_validator

from kolors_kernel.component import BuildContext, ExistingPath
from kolors_kernel.kinds import CaptionMixConfig, DataSinkConfig, DataSourceConfig, SampleFilterConfig
from kolors_zarr.buckets_config import BucketsConfig, SquareBuckets

if TYPE_CHECKING:
    from kolors_zarr.loading.source import ZarrDataSource
    from kolors_zarr.store.sink import ZarrStoreSink

_MIX: Any = {"type": "mix"}
_SQUARE: Any = {"type": "square", "side": 64}
_EXISTING: TypeAdapter[Any] = TypeAdapter(ExistingPath)


def _found(value: object) -> str:
    """Return a URL as it is, and anything else as the absolute path of what is there."""
    if isinstance(value, str) and "://" in value:
        return str(value)
    try:
        return str(_EXISTING.validate_python(value))
    except ValidationError as error:
        raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None


StorePath = Annotated[str, BeforeValidator(_found)]
"""Where a store is: a folder that exists, made absolute, or a URL."""


class ZarrSink(DataSinkConfig):
    """Writes samples into a new zarr v3 store, whole shards at a time, and shows it when all are there."""

    type: Literal["zarr"] = "zarr"
    path: str = "store.zarr"
    """The new store: a folder below that of the run, an absolute one, or a URL (s3://, gs://, az://, memory:// ...)."""
    shard: PositiveInt = 256
    """Samples in a shard, which is what one worker writes in one go."""

    @classmethod
    def tiny(cls) -> Self:
        """Return a sink to a new place in a temporary folder that is removed when the process ends."""
        from kolors_zarr.tiny import temporary_path

        return cls(path=str(temporary_path()), shard=2)

    def build(self, ctx: BuildContext) -> ZarrStoreSink:
        """Make the sink; nothing is written yet."""
        from kolors_zarr.store.places import open_place
        from kolors_zarr.store.sink import ZarrStoreSink

        return ZarrStoreSink(open_place(self.path, below=ctx.out), shard_rows=self.shard)


class ZarrSource(DataSourceConfig):
    """Yields batches of a zarr store, each from one bucket: pictures or latents, with captions or conditioning (2.2).

    Every selected sample counts once in an epoch, whatever the batch and the number of ranks.
    """

    type: Literal["zarr"] = "zarr"
    path: StorePath
    """The store: a folder that exists, or a URL (s3://, gs://, az://, https://, memory:// ...)."""
    pictures: Literal["images", "latents"] = "images"
    """Whether batches hold the pictures themselves or the latents precomputed from them."""
    text: Literal["captions", "conditioning"] = "captions"
    """Whether batches hold caption text or the conditioning precomputed from it."""
    buckets: BucketsConfig = Field(default=_SQUARE)
    """The sizes that pictures are scaled and cut to; latents keep those they were made at."""
    crop: Literal["random", "centre"] = "random"
    """Where a picture is cut that sticks out of its bucket: anew in each epoch, or in the middle; `size` says where."""
    batch: PositiveInt = 32
    """Samples per batch on each rank."""
    remainder: Literal["pad", "drop", "carry"] = "pad"
    """What becomes of samples that fill no batch of all ranks: trained with copies of weight 0 beside them, left out
    of the epoch, or kept for the next one."""
    captions: CaptionMixConfig = Field(default=_MIX)
    """Which of a sample's captions it is trained with in an epoch."""
    filters: list[SampleFilterConfig] = Field(default_factory=list)
    """Which samples are used: those that no filter drops."""
    requires: list[SampleFilterConfig] = Field(default_factory=list)
    """What every sample that is used must pass: one that such a filter drops is an error (2.1.3)."""
    balance: str | None = None
    """The tag whose values are to count the same in the loss, however many samples have each; none counts samples."""
    damaged: Literal["raise", "replace"] = "raise"
    """What to do about a damaged sample: stop, or train with a copy of weight 0 in its place and list it in
    quarantine.jsonl in the folder of the run."""
    threads: NonNegativeInt = 2
    """Threads that read ahead. With 0 a batch is read when it is asked for."""
    processes: NonNegativeInt = 0
    """Processes that read ahead instead of threads, where there are any."""

    @model_validator(mode="after")
    def _require_a_place_that_processes_share(self) -> Self:
        if self.processes and self.path.startswith("memory://"):
            raise ValueError(
                f"{self.path} is in the memory of this process, which others cannot read; set processes: 0"
            )
        return self

    @classmethod
    def tiny(cls) -> Self:
        """Return a source of six pictures of 8 pixels, in a temporary folder removed when the process ends."""
        from kolors_zarr.tiny import tiny_store

        return cls(path=str(tiny_store()), buckets=SquareBuckets.tiny(), batch=4)

    def ports(self) -> frozenset[Literal["images", "latents", "captions", "conditioning"]]:
        """Return the two fields chosen by `pictures` and `text`."""
        return frozenset({self.pictures, self.text})

    def picture_sizes(self) -> Sequence[tuple[int, int]]:
        """Return what the buckets allow; latents have no such sizes."""
        return self.buckets.possible_sizes() if self.pictures == "images" else ()

    def build(self, ctx: BuildContext) -> ZarrDataSource:
        """Open the store and select its samples. Raises DataError when it has not what is asked for."""
        from kolors_zarr.loading.building import build_source

        return build_source(self, ctx)


COMPONENTS = [ZarrSink, ZarrSource]
