"""Batches filled ahead by processes of our own, in memory that is theirs and ours.

A worker is a fresh interpreter that imports what filling needs and nothing else: no torch, no main module. Jobs and
answers go through a pipe; pictures never do, they are in the slots. The memory has no name, so the system takes it
back when the last process that maps it is gone, however that came about; and a worker ends when its pipe does.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import weakref
from collections import deque
from collections.abc import Generator, Iterable
from contextlib import ExitStack
from itertools import chain, cycle, islice, repeat
from multiprocessing import Pipe
from typing import Any

from kolors_kernel.errors import KolorsError, RunError
from kolors_zarr.loading.ring import CALLER_HOLDS, Fill, Filled, Ring, Slot
from kolors_zarr.loading.worker import mapped

_TOGETHER = 4
_TOGETHER_BYTES = 32 * 2**20
"""A message costs as much as filling a small batch, so that many go together if they are no larger than this."""


class Processes:
    """Fills slots of `slot_bytes` with `count` processes, which stay for the next epoch until `close` or our own end.

    `fill` goes to them pickled. Raises RunError when it cannot be.
    """

    def __init__(self, fill: Fill, *, count: int, slot_bytes: int) -> None:
        self._together = max(1, min(_TOGETHER, _TOGETHER_BYTES // slot_bytes))
        # Two messages for each worker, so that it need not wait for us.
        self.slots, self.slot_bytes = 2 * count * self._together + CALLER_HOLDS, slot_bytes
        self._count, self._idle = count, list[_Group]()
        try:
            self._fill = pickle.dumps(fill)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise RunError(f"what fills batches cannot go to other processes: {error}; set processes: 0") from error
        weakref.finalize(self, _close, self._idle)

    def filled(self, jobs: Iterable[Any]) -> Generator[Filled]:
        """Yield what `fill` returned for each job, in the order of the jobs, with the slot that was filled.

        Raises what `fill` raised, where that batch would have come, and RunError when a process is gone.
        """
        with ExitStack() as stack:
            group = self._idle.pop() if self._idle else _Group(self._fill, self._count, self.slots, self.slot_bytes)
            stack.callback(group.close)
            yield from group.filled(jobs, self._together)
            stack.pop_all()
            self._idle.append(group)

    def close(self) -> None:
        """End the processes that wait for another epoch."""
        _close(self._idle)


def _close(idle: list[_Group]) -> None:
    while idle:
        idle.pop().close()


class _Group:
    """Processes that share a ring. They serve one epoch after another, and nothing else once one was broken off."""

    def __init__(self, fill: bytes, count: int, slots: int, slot_bytes: int) -> None:
        memory = _nameless(slots * slot_bytes)
        self._workers = list[_Worker]()
        try:
            self._ring = Ring(mapped(memory, slots, slot_bytes))
            for _ in range(count):
                self._workers.append(_Worker(memory, slots, slot_bytes))
        finally:
            os.close(memory)
        for worker in self._workers:
            worker.tell(fill)

    def filled(self, jobs: Iterable[Any], together: int) -> Generator[Filled]:
        turns, waiting, ahead = cycle(self._workers), deque[tuple[_Worker, list[Slot]]](), 0
        # The first ones go one by one: the first batch is there sooner, and every worker has something to do.
        sizes, todo = chain(repeat(1, len(self._workers)), repeat(together)), iter(jobs)
        some = list(islice(todo, next(sizes)))
        while True:
            while some and self._ring.free >= len(some):
                worker, slots = next(turns), [slot for _ in some if (slot := self._ring.take())]
                worker.tell([(slot.place, job) for slot, job in zip(slots, some, strict=True)])
                waiting.append((worker, slots))
                ahead += len(slots)
                some = list(islice(todo, next(sizes)))
            if not waiting:
                return
            worker, slots = waiting.popleft()
            for done, slot in zip(worker.answers(), slots, strict=False):
                if isinstance(done, KolorsError):
                    raise done
                ahead -= 1
                if self._ring.free + ahead < together * len(self._workers):
                    # The caller keeps its batches. It gets a copy, so that there are slots for each worker, now and
                    # in the next epoch.
                    copied = Slot(slot.memory.copy())
                    slot.give_back()
                    slot = copied
                yield done, slot

    def close(self) -> None:
        for worker in self._workers:
            worker.end()


class _Worker:
    def __init__(self, memory: int, slots: int, slot_bytes: int) -> None:
        self._pipe, theirs = Pipe()
        # As multiprocessing would: the worker finds its modules where this process does.
        code = f"import sys; sys.path[:] = {sys.path!r}; from kolors_zarr.loading.worker import serve; serve"
        arguments = (theirs.fileno(), memory, slots, slot_bytes)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"{code}{arguments}"],
                stdin=subprocess.DEVNULL,
                pass_fds=arguments[:2],
                process_group=0,  # Ctrl-C is for this process, which then ends its workers
            )

    def tell(self, message: Any) -> None:
        try:
            self._pipe.send(message)
        except ConnectionError as error:
            raise self._lost() from error

    def answers(self) -> list[Any]:
        try:
            found: list[Any] = self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise self._lost() from error
        return found

    def end(self) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.wait()

    def _lost(self) -> RunError:
        code = self._process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}, see above"
        memory = "; the system does so when memory runs out" if code == -signal.SIGKILL else ""
        return RunError(f"a process that fills batches ({self._process.pid}) {how}{memory}")


def _nameless(size: int) -> int:
    """Return an open file of `size` bytes in memory, which takes up what is written to it; it has no name."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("kolors batches")
    else:
        with tempfile.TemporaryFile() as temporary:
            file = os.dup(temporary.fileno())
    os.truncate(file, size)
    return file
