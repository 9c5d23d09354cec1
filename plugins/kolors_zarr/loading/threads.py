"""Batches filled ahead by threads: copies, checksums and picture decoders let other threads run meanwhile."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from kolors_zarr.loading.ring import CALLER_HOLDS, Fill, Filled, Ring, Slot


class Threads:
    """Fills slots of `slot_bytes` with `count` threads, or with the caller's own where `count` is 0.

    `pinned` makes a slot of memory that a GPU copies from. A caller that keeps all its batches gets new memory for
    each, beside the `slots` that go round.
    """

    def __init__(self, fill: Fill, *, count: int, slot_bytes: int, pinned: Callable[[int], Slot] | None = None) -> None:
        # One batch in each thread's hands, and one ready.
        self.slots, self.slot_bytes = count + 1 + CALLER_HOLDS, slot_bytes
        self._fill, self._count, self._pinned = fill, count, pinned
        self._idle = list[Ring]()

    def filled(self, jobs: Iterable[Any]) -> Generator[Filled]:
        """Yield what `fill` returned for each job, in the order of the jobs, with the slot it filled.

        Raises what `fill` raised, where that batch would have come. Nothing runs any more once the generator is closed.
        """
        ring = self._idle.pop() if self._idle else self._ring()
        slots = iter(lambda: ring.take() or self._new_slot(), None)
        try:
            if self._count:
                yield from self._ahead(jobs, slots)
            else:
                yield from self._in_turn(jobs, slots)
        finally:
            self._idle.append(ring)

    def _in_turn(self, jobs: Iterable[Any], slots: Iterator[Slot]) -> Generator[Filled]:
        for job, slot in zip(jobs, slots, strict=False):
            try:
                done = self._fill(job, slot.memory)
            except BaseException:
                slot.give_back()
                raise
            yield done, slot

    def _ahead(self, jobs: Iterable[Any], slots: Iterator[Slot]) -> Generator[Filled]:
        waiting = deque[tuple[Future[Any], Slot]]()
        pool = ThreadPoolExecutor(self._count, thread_name_prefix="batches")
        try:
            for job, slot in zip(jobs, slots, strict=False):
                waiting.append((pool.submit(self._fill, job, slot.memory), slot))
                if len(waiting) > self._count:
                    yield _result(waiting)
            while waiting:
                yield _result(waiting)
        finally:
            pool.shutdown(cancel_futures=True)
            for _, slot in waiting:
                slot.give_back()

    def close(self) -> None:
        """Let go of the memory that waits for another epoch."""
        self._idle.clear()

    def _ring(self) -> Ring:
        # Torch's pinned memory goes round without us.
        return Ring(() if self._pinned else (np.empty(self.slot_bytes, np.uint8) for _ in range(self.slots)))

    def _new_slot(self) -> Slot:
        return self._pinned(self.slot_bytes) if self._pinned else Slot(np.empty(self.slot_bytes, np.uint8))


def _result(waiting: deque[tuple[Future[Any], Slot]]) -> Filled:
    future, slot = waiting[0]
    result = future.result()
    waiting.popleft()
    return result, slot
