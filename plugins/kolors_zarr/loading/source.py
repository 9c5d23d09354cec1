"""Training batches from a store."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from hashlib import blake2b
from pathlib import Path

import numpy as np

from kolors_kernel.values import Part, SampleRecord
from kolors_zarr.loading.batches import PinnedSlot, ZarrBatch, to_batch
from kolors_zarr.loading.filling import Filler, Job
from kolors_zarr.loading.processes import Processes
from kolors_zarr.loading.quarantine import Quarantine
from kolors_zarr.loading.report import Report
from kolors_zarr.loading.selection import Bucket
from kolors_zarr.loading.threads import Threads
from kolors_zarr.loading.weights import Weights
from kolors_zarr.order.plan import ORDER_VERSION, Plan, Remainder, Stretch

logger = logging.getLogger(__name__)


class ZarrDataSource:
    """Batches of the selected samples of a store, on the CPU: pictures in uint8, latents as they are stored.

    They are read ahead, by `threads` or by `processes` if there are any, in memory that is used again: a batch stays
    as it is for as long as anything of it is held. With `pinned`, a GPU copies from it without waiting. `fingerprint`
    tells what the order depends on beside seed, epoch, batch and ranks.
    """

    def __init__(
        self,
        filler: Filler,
        buckets: Sequence[Bucket],
        *,
        batch: int,
        remainder: Remainder,
        weights: Weights,
        threads: int,
        processes: int,
        pinned: bool,
        quarantine: Path,
        report: Report,
    ) -> None:
        self.store, self.mix, self.batch = filler.store, filler.mix, batch
        self.fingerprint = _fingerprint(filler, buckets, remainder)
        self._buckets, self._remainder, self._weights, self._pinned = buckets, remainder, weights, pinned
        self._quarantine, self._report = Quarantine(quarantine, store=report.store), report
        slot_bytes = max(filler.bytes_of(batch, bucket.size) for bucket in buckets)
        new_slot = PinnedSlot if pinned else None
        self._readers: Threads | Processes
        if processes:
            self._readers = Processes(filler, count=processes, slot_bytes=slot_bytes)
        else:
            self._readers = Threads(filler, count=threads, slot_bytes=slot_bytes, pinned=new_slot)
        stored = filler.without_text()
        self._stored = Threads(stored, count=threads, slot_bytes=slot_bytes, pinned=new_slot)
        self._said = ""
        self._said_chosen = False
        self._log_bound()

    def report(self) -> Report:
        """Return what was found in the store, and what was given out so far."""
        return self._report

    def records(self) -> list[SampleRecord]:
        """Return the records of the selected samples, in stored order."""
        numbers = np.concatenate([np.asarray(bucket.numbers) for bucket in self._buckets])
        return self.store.records(np.sort(numbers))

    def close(self) -> None:
        """End the processes that wait for another epoch; they end with the source, too."""
        self._readers.close()

    def batches(
        self,
        *,
        seed: int,
        epoch: int,
        rank: int = 0,
        world: int = 1,
        skip: int = 0,
        before: Sequence[tuple[int, int, int, int]] = (),
    ) -> Iterator[ZarrBatch]:
        """Yield the batches of one rank in one epoch, each from one bucket.

        Order, crops and captions are pure functions of (seed, epoch); ranks share no sample. `before` says where the
        run stood each time its batch or world changed: (epoch, batch, world, steps done in it with these); what they
        left is yielded, and `skip` counts from the last of them. Raises DataError naming a damaged sample where its
        batch would come, unless such samples are replaced.
        """
        plan = Plan(
            [len(bucket.numbers) for bucket in self._buckets],
            batch=self.batch,
            world=world,
            seed=seed,
            epoch=epoch,
            remainder=self._remainder,
            before=[Stretch(*each) for each in before],
        )
        if rank == skip == 0 and not before:
            self._log_plan(plan)
        with closing(self._readers.filled(self._jobs(plan, rank, skip))) as filled:
            for done, slot in filled:
                batch = to_batch(done, slot, self.store, pinned=self._pinned)
                self._report.damaged += self._quarantine.add(done.damages)
                counted = zip(done.keys, batch.weight.tolist(), strict=False)
                self._report.chosen.update(key for key, weight in counted if weight)
                yield batch
        if rank == 0:
            self._log_chosen()

    def parts(self, most: int) -> list[Part]:
        """Return the selected samples as stored, in parts of up to `most` from one bucket each."""
        found = []
        for bucket in self._buckets:
            for start in range(0, len(bucket.numbers), most):
                rows = bucket.numbers[start : start + most]
                name = f"{bucket.size[0]}x{bucket.size[1]}-{start // most:06d}"
                found.append(Part(name, bucket.size, rows if isinstance(rows, range) else rows.tolist()))
        return found

    def read(self, part: Part) -> Iterator[ZarrBatch]:
        """Yield a part's samples in its order, without text, cut as in epoch 0 of seed 0.

        Raises DataError for a damaged sample, even where training replaces it.
        """
        rows = np.asarray(part.rows, np.int64)
        groups = (rows[start : start + self.batch] for start in range(0, len(rows), self.batch))
        jobs = (Job(numbers, np.ones(len(numbers), np.float32), part.size, 0, 0) for numbers in groups)
        with closing(self._stored.filled(jobs)) as filled:
            for done, slot in filled:
                yield to_batch(done, slot, self.store, pinned=self._pinned)

    def _jobs(self, plan: Plan, rank: int, skip: int) -> Iterator[Job]:
        places = np.arange(self.batch)
        for planned in plan.batches(rank, skip=skip):
            bucket = self._buckets[planned.bucket]
            numbers = bucket.at(planned.samples)
            weight = np.where(places < planned.real, self._weights.of(numbers), 0).astype(np.float32)
            yield Job(numbers, weight, bucket.size, plan.seed, plan.epoch)

    def _log_bound(self) -> None:
        slots, each = self._readers.slots, self._readers.slot_bytes
        index = self.store.most_index_bytes + sum(
            0 if isinstance(bucket.numbers, range) else bucket.numbers.nbytes for bucket in self._buckets
        )
        logger.info(
            "%s: at most %.0f MB: %d batches of %.1f MB and %.0f MB of index",
            self._report.store,
            (slots * each + index) / 1e6,
            slots,
            each / 1e6,
            index / 1e6,
        )

    def _log_plan(self, plan: Plan) -> None:
        counts = plan.report()
        parts = {name: sum(getattr(each, name) for each in counts) for name in ("padded", "dropped", "carried")}
        words = {"padded": "copies of weight 0", "dropped": "samples left out", "carried": "samples carried over"}
        found = [f"{count} {words[name]}" for name, count in parts.items() if count]
        text = ", ".join([f"{plan.steps} steps an epoch", *found])
        if text != self._said:
            logger.info("%s: %s", self._report.store, text)
            self._said = text

    def _log_chosen(self) -> None:
        chosen = self._report.chosen
        if chosen and not self._said_chosen:
            shares = [f"{key} {count / chosen.total():.1%}" for key, count in sorted(chosen.items())]
            logger.info("%s: captions of the first epoch: %s", self._report.store, ", ".join(shares))
            self._said_chosen = True


def _fingerprint(filler: Filler, buckets: Sequence[Bucket], remainder: Remainder) -> str:
    """Return a short text for the store, what is selected of it and its remainder; another one means another order."""
    digest = blake2b(filler.store.manifest.to_bytes(), digest_size=6, person=b"kolors order")
    digest.update(remainder.encode())
    for bucket in buckets:
        digest.update(f"{bucket.size}".encode())
        rows = bucket.numbers  # a range is all of a group: nothing has to be written out for it
        digest.update(f"{rows}".encode() if isinstance(rows, range) else rows.astype("<i8").tobytes())
    return f"order {ORDER_VERSION} of {digest.hexdigest()}"
