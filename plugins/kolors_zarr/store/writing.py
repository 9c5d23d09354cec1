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

    Holds up to a shard of each group in memory, and all ids. Whatever fails, nothing is left behind. Raises DataError
    when there is something at the path or there are no samples, ValueError when the samples do not hold the same things
    or an id comes twice, RunError when the place cannot be written. `buckets` are the sizes by which pictures that are
    kept as they came were put into groups.
    """
    place = open_place(path) if isinstance(path, str | Path) else path
    with writing(place, left=_NOTHING):
        begin(place, Plan.of([], shard_rows=shard_rows))
    try:
        stream = _Stream(place, shard_rows)
        for sample in samples:
            stream.add(size_of(sample), sample)
        parts = stream.close()
        with writing(place, left=_NOTHING):
            return publish(place, parts, samples=stream.samples, shard_rows=shard_rows, buckets=buckets)
    except BaseException:
        place.clear("")
        raise


class _Stream:
    """Collects samples by size, and writes a shard of each whenever it is full."""

    def __init__(self, place: Place, shard_rows: int) -> None:
        self.place, self.shard_rows, self._ids = place, shard_rows, set[str]()
        self._waiting: dict[Size, list[Sample]] = {}
        self._shards: dict[Size, int] = {}

    def add(self, size: Size, sample: Sample) -> None:
        """Take in the next sample."""
        id = sample.record.id
        if id in self._ids:
            raise ValueError(f"two samples have the id '{id}'; an id is unique in a store")
        self._ids.add(id)
        self._waiting.setdefault(size, []).append(sample)
        if len(self._waiting[size]) == self.shard_rows:
            self._write(size)

    @property
    def samples(self) -> int:
        """How many came."""
        return len(self._ids)

    def close(self) -> list[tuple[str, int]]:
        """Write what is waiting, and return all parts in the order of the store."""
        for size in list(self._waiting):
            self._write(size)
        return [(group_name(size), shard) for size in sorted(self._shards) for shard in range(self._shards[size])]

    def _write(self, size: Size) -> None:
        shard, samples = self._shards.get(size, 0), self._waiting.pop(size)
        self._shards[size] = shard + 1
        with writing(self.place, left=_NOTHING):
            write_part(self.place, group_name(size), shard=shard, samples=samples, shard_rows=self.shard_rows)
