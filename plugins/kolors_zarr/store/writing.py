"""Writing a store from a stream of samples, in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from kolors_kernel.values import Sample
from kolors_zarr.store.layout import group_name
from kolors_zarr.store.manifest import Manifest
from kolors_zarr.store.parts import write_part
from kolors_zarr.store.places import Place, open_place, writing
from kolors_zarr.store.plan import Plan, begin
from kolors_zarr.store.publishing import publish

Size = tuple[int, int]
_NOTHING = "nothing was left behind"


def picture_size(sample: Sample) -> Size:
    """Return the height and width that a sample's pixels or latents are of; (0, 0) for a picture as it came."""
    if sample.pixels is None and sample.latents is None:
        return 0, 0
    return (sample.size[4], sample.size[5]) if sample.size else sample.record.size


def write_store(
    path: str | Path | Place,
    samples: Iterable[Sample],
    *,
    shard_rows: int = 256,
    size_of: Callable[[Sample], Size] = picture_size,
    buckets: Sequence[Size] = (),
) -> Manifest:
    """Write samples to a new store, in groups by `size_of`, each in the order they come; return its manifest.

    Holds up to a shard of each group in memory. Whatever fails, nothing is left behind. Raises DataError when there is
    something at the path or there are no samples, ValueError when the samples do not hold the same things, RunError
    when the place cannot be written. `buckets` are the sizes by which pictures that are kept as they came were put
    into groups.
    """
    place = open_place(path) if isinstance(path, str | Path) else path
    with writing(place, left=_NOTHING):
        begin(place, Plan.of([], shard_rows=shard_rows))
    waiting: dict[Size, list[Sample]] = {}
    shards: dict[Size, int] = {}
    count = 0

    def write(size: Size) -> None:
        shard = shards[size] = shards.get(size, -1) + 1
        with writing(place, left=_NOTHING):
            write_part(place, group_name(size), shard=shard, samples=waiting.pop(size), shard_rows=shard_rows)

    try:
        for sample in samples:
            count += 1
            size = size_of(sample)
            waiting.setdefault(size, []).append(sample)
            if len(waiting[size]) == shard_rows:
                write(size)
        for size in list(waiting):
            write(size)
        parts = [(group_name(size), shard) for size in sorted(shards) for shard in range(shards[size] + 1)]
        with writing(place, left=_NOTHING):
            return publish(place, parts, samples=count, shard_rows=shard_rows, buckets=buckets)
    except BaseException:
        place.clear("")
        raise
