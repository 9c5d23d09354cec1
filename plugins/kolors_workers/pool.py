"""Working in this very process, or in several that are its own."""

from __future__ import annotations

import functools
import logging
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from kolors_workers.handing_out import Bench, WorkerDied, attempt, hand_out

SPAWN = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads and CUDA's state


class ProcessPool:
    """Does the work here if `count` is 1, and otherwise in so many processes made anew for each `map`."""

    def __init__(self, count: int) -> None:
        self.count = count

    def map(self, make: Callable[[], Callable[[Any], Any]], items: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        """Yield each item with what was made of it, as they finish.

        Raises what the work raised: a KolorsError as it is, all else as RunError naming the item. An item whose
        process dies is tried again by another, three times in all.
        """
        if self.count == 1:
            work = functools.cache(make)
            for item in items:
                yield item, attempt(lambda it: work()(it), item)
        else:
            settings = (pickle.dumps(make), logging.getLogger().level, max(1, _cores() // self.count))
            yield from hand_out(items, count=self.count, hire=lambda: OwnProcess(*settings), wait=_wait)


class OwnProcess:
    """A process of ours and the pipe to it."""

    def __init__(self, make: bytes, log_level: int, threads: int) -> None:
        self.pipe, theirs = SPAWN.Pipe()
        self.process = SPAWN.Process(target=_serve, args=(theirs, make, log_level, threads), daemon=True)
        self.process.start()
        theirs.close()  # so that the pipe ends when the process does

    def begin(self, item: Any) -> None:
        """Send an item."""
        message = pickle.dumps(item)
        with suppress(OSError):  # it has just died, as `answer` will say
            self.pipe.send_bytes(message)

    def answer(self) -> bytes:
        """Receive the answer. Raises WorkerDied with the signal or the exit code."""
        try:
            return self.pipe.recv_bytes()
        except (EOFError, OSError):
            self.close()
            code = self.process.exitcode or 0
            raise WorkerDied(signal.Signals(-code).name if code < 0 else f"exit code {code}") from None

    def close(self) -> None:
        """Kill the process: nothing it does outside its answers is worth waiting for."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _wait(workers: list[OwnProcess], timeout: float | None) -> list[OwnProcess]:
    ready = wait([worker.pipe for worker in workers], timeout)
    return [worker for worker in workers if worker.pipe in ready]


def _serve(pipe: Connection, make: bytes, log_level: int, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all at a terminal; the caller ends its workers
    threading.Thread(target=_end_with_the_caller, daemon=True).start()
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # before anything of `make` is imported
    bench = Bench(make, pickle.dumps, log_level)
    with suppress(EOFError, OSError):
        while True:
            pipe.send_bytes(bench.answer(pipe.recv_bytes()))


def _end_with_the_caller() -> None:
    caller = multiprocessing.parent_process()
    assert caller is not None
    caller.join()
    os._exit(1)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
