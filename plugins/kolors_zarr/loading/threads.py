"""Batches filled ahead by threads: copies, checksums and picture decoders let other threads run meanwhile."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from kolors_zarr.loading.ring import CALLER_HOLDS, Fill, Filled, Ring, Slot


class Threads:
    """Fills slots of `slot_bytes` with `count` threads. `pinned` makes a slot of memory that a GPU copies from.

    A caller that keeps all its batches gets new memory for each, beside the `slots` that go round.
    """

    def __init__(self, fill: Fill, *, count: int, slot_bytes: int, pinned: Callable[[int], Slot] | None = None) -> None:
        # One batch in each thread's hands, and one ready.
        self.slots, self.slot_bytes = count + 2 + CALLER_HOLDS, slot_bytes
        self._fill, self._count, self._pinned = fill, count, pinned

    def filled(self, jobs: Iterable[Any]) -> Generator[Filled]:
        """Yield what `fill` returned for each job, in the order of the jobs, with the slot it filled.

        Raises what `fill` raised, where that batch would have come. Nothing runs any more once the generator is closed.
        """
        take, waiting = self._take(), deque[tuple[Future[Any], Slot]]()
        pool = ThreadPoolExecutor(self._count, thread_name_prefix="batches")
        try:
            for job in jobs:
                slot = take()
                waiting.append((pool.submit(self._fill, job, slot.memory), slot))
                if len(waiting) == self._count + 2:
                    yield _result(waiting)
            while waiting:
                yield _result(waiting)
        finally:
            pool.shutdown(cancel_futures=True)

    def close(self) -> None:
        """Do nothing: threads end with each epoch."""

    def _take(self) -> Callable[[], Slot]:
        size, pinned = self.slot_bytes, self._pinned
        if pinned is not None:
            return lambda: pinned(size)
        ring = Ring(np.empty(size, np.uint8) for _ in range(self.slots))
        return lambda: ring.take() or Slot(np.empty(size, np.uint8))


def _result(waiting: deque[tuple[Future[Any], Slot]]) -> Filled:
    future, slot = waiting.popleft()
    return future.result(), slot
