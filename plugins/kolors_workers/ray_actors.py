"""Working in Ray actors, on this machine or on a cluster."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from typing import Any

import ray
from ray import cloudpickle  # knows what a script's own main module defines, which actors cannot import
from ray.exceptions import RayError

from kolors_kernel.errors import RecipeError
from kolors_workers.handing_out import Bench, WorkerDied, hand_out


class RayActors:
    """Does the work in `count` actors made anew for each `map`, with so many GPUs and CPUs for each."""

    def __init__(self, count: int, *, gpus: float, cpus: float, address: str) -> None:
        self.count, self.gpus, self.cpus, self.address = count, gpus, cpus, address

    def map(self, make: Callable[[], Callable[[Any], Any]], items: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        """Yield each item with what was made of it, as they finish.

        Raises what the work raised: a KolorsError as it is, all else as RunError naming the item. An item whose
        actor dies is tried again by another, three times in all.
        """
        if not items:
            return
        settings = (cloudpickle.dumps(make), cloudpickle.dumps, logging.getLogger().level)
        with self._connected():
            bench = ray.remote(num_gpus=self.gpus, num_cpus=self.cpus)(Bench)
            yield from hand_out(items, count=self.count, hire=lambda: Actor(bench.remote(*settings)), wait=_wait)

    @contextmanager
    def _connected(self) -> Iterator[None]:
        if ray.is_initialized():
            yield
            return
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(self.address)
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put its own in place
            if self.address == "local":
                self._check_room()
            yield
        finally:
            ray.shutdown()

    def _check_room(self) -> None:
        """Raise RecipeError for actors that Ray would wait for without end: one machine gets no larger."""
        there = ray.cluster_resources()
        for name, each in (("GPU", self.gpus), ("CPU", self.cpus)):
            if self.count * each > there.get(name, 0):
                raise RecipeError(
                    f"{self.count} ray workers with {each:g} {name} each need {self.count * each:g} {name}s, "
                    f"and this machine has {there.get(name, 0):g}"
                )


class Actor:
    """An actor and the answer it owes."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.owed: Future[bytes] = Future()

    def begin(self, item: Any) -> None:
        """Send an item."""
        self.owed = self.handle.answer.remote(cloudpickle.dumps(item)).future()

    def answer(self) -> bytes:
        """Fetch the answer. Raises WorkerDied with what Ray knows of the death."""
        try:
            return self.owed.result()
        except RayError as error:
            raise WorkerDied(str(error)) from None

    def close(self) -> None:
        """Kill the actor."""
        ray.kill(self.handle)


def _wait(workers: list[Actor], timeout: float | None) -> list[Actor]:
    # Not ray.wait: of what a signal handler raises meanwhile, it lets KeyboardInterrupt through and nothing else.
    ready = wait([worker.owed for worker in workers], timeout, FIRST_COMPLETED).done
    return [worker for worker in workers if worker.owed in ready]
