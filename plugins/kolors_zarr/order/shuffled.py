"""The order of an epoch: a pure function of seed and epoch, the same on every machine and for every world size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Plan:
    """Which of `count` samples each batch holds: `batch` on each of `world` ranks at every step."""

    count: int
    batch: int
    world: int = 1

    @property
    def steps(self) -> int:
        """The batches of an epoch on each rank, the last one filled up."""
        return -(-self.count // (self.batch * self.world))

    def batches(self, *, seed: int, epoch: int, rank: int = 0, skip: int = 0) -> Iterator[tuple[list[int], int]]:
        """Yield the positions of each batch of a rank, and how many of them count; the rest are copies.

        A step's batches, rank after rank, are one stretch of the epoch's order, so it does not depend on how a
        global batch is shared out. Raises ValueError for a rank outside the world or a skip below 0.
        """
        if not 0 <= rank < self.world or skip < 0:
            raise ValueError(f"rank {rank} of {self.world} with skip {skip}: need 0 <= rank < world and skip >= 0")
        order = shuffled(self.count, seed=seed, epoch=epoch)
        for step in range(skip, self.steps):
            start = (step * self.world + rank) * self.batch
            real = min(max(self.count - start, 0), self.batch)
            yield order[np.arange(start, start + self.batch) % self.count].tolist(), real


def shuffled(count: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the numbers below `count` in the order of an epoch.

    Sorted by the raw output of Philox, a counter-based generator whose stream numpy promises to keep.
    """
    key = int.from_bytes(blake2b(f"{seed} {epoch}".encode(), digest_size=16, person=b"kolors order").digest(), "little")
    return np.argsort(np.random.Philox(key=key).random_raw(count), kind="stable")
