"""Where a training is, and how it goes on in the middle of an epoch with other ranks or batches."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast

from kolors_kernel.errors import DataError, RecipeError
from kolors_kernel.protocols import DataSource

if TYPE_CHECKING:
    from kolors_kernel.values import Batch
    from kolors_recipes.ranks import Ranks

logger = logging.getLogger(__name__)


class SupportsElastic(DataSource, Protocol):
    """A data source whose epoch can be gone on with by another number of ranks, or in other batches."""

    batch: int
    """Samples a batch on each rank."""
    fingerprint: str
    """What the order depends on beside seed, epoch, batch and ranks: another text means another order."""

    def batches(
        self,
        *,
        seed: int,
        epoch: int,
        rank: int = 0,
        world: int = 1,
        skip: int = 0,
        before: Sequence[tuple[int, int, int, int]] = (),
    ) -> Iterator[Batch]:
        """Yield what is left of the epoch. `before` says where the run stood each time its batch or world changed:
        (epoch, batch, world, steps done in it with these); `skip` counts from the last of them.
        """


@dataclass
class Position:
    """Where a run is: steps over all stages, the stage, steps in it, and the epoch and batch its data are at.

    `batch` counts the batches of the epoch in the present stretch, which is in shares of (batch, world); `before`
    is where the stage stood each time they changed.
    """

    step: int = 0
    stage: int = 0
    stage_step: int = 0
    epoch: int = 0
    batch: int = 0
    share: tuple[int, int] | None = None
    before: list[tuple[int, int, int, int]] = field(default_factory=list)
    fingerprint: str = ""

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Position:
        """Return the position that a checkpoint's state holds as JSON."""
        share = tuple(state["share"]) if state["share"] else None
        return cls(**{**state, "share": share, "before": [tuple(each) for each in state["before"]]})

    def settle(self, source: DataSource, ranks: Ranks, *, stage: str) -> None:
        """Go on with this source and these ranks, in a new stretch of the epoch if their shares are new.

        Raises DataError when the data are not those the run began with, RecipeError when the source cannot change
        its shares within an epoch.
        """
        now = (getattr(source, "batch", 0), ranks.world)
        fingerprint = getattr(source, "fingerprint", "")
        if self.share is not None and fingerprint != self.fingerprint:
            raise DataError(
                f"the data of stage '{stage}' are not those the run began with: {self.fingerprint} then, {fingerprint} "
                "now; restore them, or begin again in another --out"
            )
        if self.share is not None and self.share != now:
            if not hasattr(source, "fingerprint"):
                raise RecipeError(
                    f"stage '{stage}' was stopped on {self.share[1]} ranks, and its data source can only go on with as "
                    "many, in the same batches"
                )
            if ranks.first:
                was, new = (f"batches of {batch} on {world} ranks" for batch, world in (self.share, now))
                at = f"step {self.batch} of epoch {self.epoch}"
                logger.info("%s: went to %s in %s; the rest goes on in %s", stage, at, was, new)
            self.before.append((self.epoch, *self.share, self.batch))
            self.batch = 0
        self.share, self.fingerprint = now, fingerprint

    def batches(self, source: DataSource, ranks: Ranks, *, seed: int, stage: str) -> Iterator[Batch]:
        """Yield this rank's batches without end from here on, noting each new epoch; the caller counts `batch`."""
        self.settle(source, ranks, stage=stage)
        while True:
            begun = self.batch
            where = {"seed": seed, "epoch": self.epoch, "rank": ranks.rank, "world": ranks.world, "skip": self.batch}
            if self.before:
                yield from cast(SupportsElastic, source).batches(**where, before=self.before)
            else:
                yield from source.batches(**where)
            interrupted = any(epoch == self.epoch for epoch, *_ in self.before)
            if self.batch == begun == 0 and not interrupted:
                raise DataError(f"the data of stage '{stage}' have no batch in epoch {self.epoch}")
            self.epoch, self.batch = self.epoch + 1, 0
