"""The sink: a store written in parts, by any number of processes, each part whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

from kolors_kernel.errors import DataError
from kolors_kernel.values import Part, Sample
from kolors_zarr.store.layout import MANIFEST, PARTS, part_key
from kolors_zarr.store.parts import write_part
from kolors_zarr.store.places import Place, exists, writing
from kolors_zarr.store.plan import PLAN, Plan, begin
from kolors_zarr.store.publishing import publish
from kolors_zarr.store.refused import Refused

_KEPT = "what is finished stays for the next run"


class ZarrStoreSink:
    """Writes a store at a place. A part becomes one shard of each column; which one says the plan in the place."""

    def __init__(self, place: Place, *, shard_rows: int, buckets: Sequence[tuple[int, int]] = ()) -> None:
        self.place, self.part_size, self.buckets = place, shard_rows, buckets

    @cached_property
    def _plan(self) -> Plan:
        return Plan.read(self.place)

    def missing(self, parts: Sequence[Part]) -> Sequence[Part]:
        """Return the parts still to be written, and make the place ready for them.

        Raises DataError when there is a store, or one begun from other samples, or anything else; ValueError for
        parts larger than `part_size`; RunError when the place cannot be written.
        """
        plan = Plan.of(parts, shard_rows=self.part_size)
        with writing(self.place, left="nothing was begun"):
            if exists(self.place, MANIFEST) or not exists(self.place, PLAN):
                begin(self.place, plan)
            if self._plan != plan:
                raise DataError(
                    f"the unfinished store at {self.place.url} was begun from other samples or in other parts: "
                    "continue that run, or choose another path"
                )
            finished = set(self.place.keys(PARTS + "/"))
        return [part for part in parts if part_key(*plan.shards[part.name]) not in finished]

    def write(self, part: Part, samples: Iterable[Sample | Refused]) -> None:
        """Store a part, unless it is finished. What is refused counts among its samples and is reported.

        Raises ValueError for samples that do not go together or are not as many as the part has, DataError for a
        part that is not of the store, RunError when the place cannot be written.
        """
        with writing(self.place, left=_KEPT):
            if part.name not in self._plan.shards:
                raise DataError(f"part '{part.name}' is not one of those the store at {self.place.url} was begun with")
            if self._is_finished(part):
                return
        found = list(samples)
        if len(found) != len(part.rows):
            raise ValueError(f"part '{part.name}' has {len(part.rows)} samples, and {len(found)} came")
        with writing(self.place, left=_KEPT):
            # Making the samples took long: the part of a worker thought dead may have been given to another.
            if not self._is_finished(part):
                group, shard = self._plan.shards[part.name]
                write_part(self.place, group, shard=shard, samples=found, shard_rows=self.part_size)

    def _is_finished(self, part: Part) -> bool:
        return exists(self.place, part_key(*self._plan.shards[part.name])) or exists(self.place, MANIFEST)

    def publish(self, parts: Sequence[Part], *, refused: Iterable[Refused] = ()) -> int:
        """Show the store to readers and return its samples; `refused` are inputs that are in no part.

        Raises ValueError when parts do not hold the same things, DataError when one is missing or there are no
        samples, RunError when the place cannot be written.
        """
        plan = Plan.of(parts, shard_rows=self.part_size)
        with writing(self.place, left=_KEPT):
            if Plan.read(self.place) != plan:
                raise DataError(f"the store at {self.place.url} was begun from other samples or in other parts")
            manifest = publish(
                self.place,
                list(plan.shards.values()),
                samples=sum(len(part.rows) for part in parts),
                shard_rows=self.part_size,
                buckets=self.buckets,
                refused=refused,
            )
        return manifest.samples
