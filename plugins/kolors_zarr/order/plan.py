"""Which samples of which bucket each rank trains on at each step of an epoch (2.2.2).

The plan is a pure function of its arguments: no state is kept, saved or sent. Full steps draw the buckets in
proportion to what they hold, without replacement; in a full step every rank is in the same bucket, and the batches of
the ranks, one after another, are a global batch that depends only on batch * world.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from kolors_zarr.order.lots import Integers, Lots, Rest, whole
from kolors_zarr.order.permutation import MOST, Permutation, key_of

ORDER_VERSION = 1
"""Raised whenever the same arguments give another order: a run must not go on in an order it did not begin in."""

Remainder: TypeAlias = Literal["pad", "drop", "carry"]
"""What becomes of the samples of a bucket that fill no global batch."""
_SAMPLES_AT_ONCE = 1 << 15


class Stretch(NamedTuple):
    """Where a run stood when its batch or world changed: what they were, and the steps done with them in `epoch`.

    The steps count from the stretch before, if that ended in the same epoch. A run that changed between two epochs
    stood at the beginning of the second one, after 0 steps.
    """

    epoch: int
    batch: int
    world: int
    steps: int


@dataclass(frozen=True)
class RankBatch:
    """One rank's batch: numbers of samples within their bucket, [batch]; those after the first `real` are copies.

    A copy counts for nothing. It repeats a sample of the same batch, or, in a batch without a real one, of another
    rank's in this step.
    """

    bucket: int
    samples: Integers
    real: int


@dataclass(frozen=True)
class BucketReport:
    """What a plan does with one bucket of `samples` samples.

    `due` of them are still to come (with `carry`, those that earlier epochs left too): `full_batches` global batches
    and `left_over` samples, which are trained with `padded` copies beside them, `dropped`, or `carried` over.
    """

    bucket: int
    samples: int
    due: int
    full_batches: int
    left_over: int
    padded: int
    dropped: int
    carried: int


class Plan:
    """The steps of one epoch over buckets of `counts` samples: `batch` samples on each of `world` ranks a step.

    remainder: `pad` trains on what fills no global batch in a few steps more, in which ranks may differ in bucket and
    copies fill the batches; `drop` leaves it out of this epoch; `carry` begins the next epoch with it, so that each
    sample comes once in every pass through its bucket, though not once in every epoch.

    before: where the run changed its batch or world, oldest first. The plan covers the rest of the epoch: what was
    done is not done again, and where batch * world stays the same the full steps go on as if nothing had happened.
    `pad` and `drop` look at the stretches of this epoch only; `carry` needs all of them, for where a bucket's stream
    stands depends on how every earlier epoch was divided.

    Raises ValueError for arguments that make no sense.
    """

    def __init__(
        self,
        counts: Sequence[int],
        *,
        batch: int,
        world: int,
        seed: int,
        epoch: int,
        remainder: Remainder = "pad",
        before: Sequence[tuple[int, int, int, int]] = (),
    ) -> None:
        self.counts = np.array(counts, np.int64)
        self.seed, self.epoch, self.remainder = seed, epoch, remainder
        stretches = [*(Stretch(*each) for each in before), Stretch(epoch, batch, world, 0)]
        self._require_sense(stretches)
        self._rest, self._done = self._divided(stretches)

    @property
    def full_steps(self) -> int:
        """The steps in which every rank is in the same bucket and no sample is a copy; they come first."""
        return max(self._rest.full.count - self._done, 0)

    @property
    def steps(self) -> int:
        """The steps of this plan on every rank."""
        return self._rest.steps - self._done

    def batches(self, rank: int, *, skip: int = 0) -> Iterator[RankBatch]:
        """Yield the batches of one rank, the first `skip` left out; memory and the time to the first one are small.

        Raises ValueError for a rank outside the world or a skip below 0.
        """
        rest = self._rest
        if not 0 <= rank < rest.world or skip < 0:
            raise ValueError(f"rank {rank} of {rest.world} with skip {skip}: need 0 <= rank < world and skip >= 0")
        step = self._done + skip
        yield from self._rank_batches(rest.full, min(step, rest.full.count), rank)
        yield from self._rank_batches(rest.tail, max(step - rest.full.count, 0), rank)

    def report(self) -> list[BucketReport]:
        """Return what the plan does with each bucket."""
        rest = self._rest
        now = rest.taken(self._done)
        end_of_full = np.maximum(rest.full.end, now)
        full, left = (end_of_full - now) // (rest.batch * rest.world), rest.end - end_of_full
        padded = -(rest.tail.end - end_of_full) % rest.batch
        idle = -rest.tail.count % rest.world
        if idle and self.steps:
            (bucket,), _ = next(rest.tail.blocks(rest.tail.count + idle - rest.world, 1))
            padded[bucket] += idle * rest.batch
        zero = np.zeros_like(left)
        columns = np.stack(
            [
                np.arange(len(left)),
                self.counts,
                rest.end - now,
                full,
                left,
                padded,
                left if self.remainder == "drop" else zero,
                left if self.remainder == "carry" else zero,
            ]
        )
        return [BucketReport(*row) for row in columns.T.tolist()]

    def _rank_batches(self, lots: Lots, step: int, rank: int) -> Iterator[RankBatch]:
        """Yield what a rank gets of lots that are dealt out a global batch at a time, from `step` on."""
        batch = self._rest.batch
        dealt = batch * self._rest.world // lots.size  # lots in a step: one global batch, or one for each rank
        place, within = divmod(rank * batch, lots.size)
        steps = max(_SAMPLES_AT_ONCE // batch, 1)
        for buckets, numbers in lots.blocks(step * dealt, steps * dealt):
            own = np.arange(0, len(buckets), dealt)
            given = own + place < len(buckets)
            own = np.where(given, own + place, own)  # a rank without a lot copies the first one of the step
            buckets = buckets[own]
            start = lots.first[buckets] + numbers[own] * lots.size + within
            real = np.minimum(lots.end[buckets] - start, batch)
            samples = self._samples(buckets, start[:, None] + np.arange(batch) % real[:, None])
            for bucket, row, count in zip(buckets.tolist(), samples, (real * given).tolist(), strict=True):
                yield RankBatch(bucket, row, count)

    def _samples(self, buckets: Integers, positions: Integers) -> Integers:
        """Return the samples at positions [K, batch] of the streams of buckets [K], [K, batch]."""
        samples = np.empty_like(positions)
        for bucket in np.unique(buckets).tolist():
            rows = buckets == bucket
            count = int(self.counts[bucket])
            epochs = positions[rows] // count
            places = positions[rows] - epochs * count
            for epoch in range(int(epochs.min()), int(epochs.max()) + 1):
                order = Permutation(count, key_of(self.seed, epoch, "samples", bucket))
                inside = epochs == epoch
                places[inside] = order.at(places[inside])
            samples[rows] = places
        return samples

    def _divided(self, stretches: list[Stretch]) -> tuple[Rest, int]:
        """Return the division of the epoch that the last stretch is in, and how many steps of it are done."""
        at = self.counts * (0 if self.remainder == "carry" else self.epoch)
        for epoch, group in groupby(stretches, key=lambda each: each.epoch):
            if epoch < self.epoch and self.remainder != "carry":
                continue
            within = list(group)
            at = whole(at, self.counts * epoch, within[0].batch * within[0].world)
            rest, done = self._within_epoch(at, within)
            at = rest.taken(done)
        return rest, done

    def _within_epoch(self, at: Integers, stretches: list[Stretch]) -> tuple[Rest, int]:
        *earlier, last = stretches
        end, padded = self.counts * (last.epoch + 1), self.remainder == "pad"
        rest = Rest(at, end, last.batch, last.world, padded, self.seed, last.epoch)
        done = 0
        for each in [*(each for each in earlier if each.steps), last]:
            if not rest.goes_on_as(each.batch, each.world, after=done):
                at, done = rest.taken(done), 0
            rest = Rest(at, end, each.batch, each.world, padded, self.seed, each.epoch)
            done += each.steps
            if done > rest.steps:
                raise ValueError(f"{each} is {done - rest.steps} steps longer than what was left of its epoch")
        return rest, done

    def _require_sense(self, stretches: list[Stretch]) -> None:
        if self.remainder not in get_args(Remainder):
            raise ValueError(f"remainder {self.remainder!r} is none of {', '.join(get_args(Remainder))}")
        if (self.counts < 0).any() or (self.epoch + 1) * int(self.counts.max(initial=0)) > MOST:
            raise ValueError(f"counts {self.counts.tolist()} in epoch {self.epoch}: need counts from 0 to 2^62 in all")
        epochs = [each.epoch for each in stretches]
        if epochs != sorted(epochs) or epochs[0] < 0:
            raise ValueError(f"stretches of epochs {epochs}: need them in order, from 0 to the plan's {self.epoch}")
        for each in stretches:
            if each.batch < 1 or each.world < 1 or each.steps < 0:
                raise ValueError(f"{each}: need a batch and a world of at least 1, and no fewer than 0 steps")
