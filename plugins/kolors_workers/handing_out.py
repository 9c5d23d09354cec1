"""Handing items to workers one at a time, whoever they are, and what becomes of an item whose worker dies."""

from __future__ import annotations

import functools
import logging
import pickle
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from typing import Any, Protocol, TypeVar

from kolors_kernel.errors import KolorsError, RunError

logger = logging.getLogger(__name__)

MOST_TRIES = 3
"""How many workers an item may cost."""


class WorkerDied(Exception):
    """A worker is gone without an answer; the text says of what."""


class Worker(Protocol):
    """The caller's end of a worker, which does one item at a time."""

    def begin(self, item: Any) -> None:
        """Hand over an item."""

    def answer(self) -> bytes:
        """Return the answer to the item, waiting for it. Raises WorkerDied when there will be none."""

    def close(self) -> None:
        """Kill the worker if it lives and give back what it held; may be called twice."""


W = TypeVar("W", bound=Worker)
Made = TypeVar("Made")


class Bench:
    """The worker's own end: it keeps what `make` returned, and pickles what comes of each item."""

    def __init__(self, make: bytes, dumps: Callable[[Any], bytes], log_level: int) -> None:
        # A process made anew logs only warnings; its standard error is shown where the caller's is.
        logging.basicConfig(format="%(message)s", level=log_level)
        self.work, self.dumps = functools.cache(lambda: pickle.loads(make)()), dumps

    def answer(self, item: bytes) -> bytes:
        """Return (None, what was made of the item, nothing), or the class of the error, its text and its attributes."""
        try:
            return attempt(lambda it: self.dumps((None, self.work()(it), {})), pickle.loads(item))
        except KolorsError as error:
            return self.dumps((type(error), str(error), vars(error)))


def attempt(work: Callable[[Any], Made], item: object) -> Made:
    """Return what the work makes of an item. Raises RunError, naming the item, for any error that is not ours."""
    try:
        return work(item)
    except KolorsError:
        raise
    except Exception as error:
        end = "".join(traceback.format_exception(error)[-4:]).rstrip()
        raise RunError(f"the work on {item!s:.100} failed:\n{end}") from error


def hand_out(
    items: Sequence[Any], *, count: int, hire: Callable[[], W], wait: Callable[[list[W], float | None], list[W]]
) -> Iterator[tuple[Any, Any]]:
    """Yield each item with what was made of it, as they finish, by at most `count` workers at a time.

    `wait` returns those workers that have an answer or died, after so many seconds at the latest. At the first
    failure no more is handed out; what is there by then is yielded, the failure raised, and unfinished work lost.
    """
    waiting = deque((item, 1) for item in items)
    busy: dict[W, tuple[Any, int]] = {}
    failure: KolorsError | None = None

    def occupy(worker: W) -> None:
        if waiting and failure is None:
            busy[worker] = waiting.popleft()
            worker.begin(busy[worker][0])
        else:
            worker.close()  # others may be waiting for the room it takes

    with ExitStack() as crew:
        for _ in range(min(count, len(waiting))):
            occupy(crew.enter_context(closing(hire())))
        while busy and (ready := wait(list(busy), None if failure is None else 0)):
            for worker in ready:
                item, tries = busy.pop(worker)
                try:
                    error, made, told = pickle.loads(worker.answer())
                except WorkerDied as death:
                    if tries < MOST_TRIES and failure is None:
                        logger.warning("a worker died on %.100s and another tries again: %s", item, death)
                        waiting.appendleft((item, tries + 1))
                        occupy(crew.enter_context(closing(hire())))
                        continue
                    error, made, told = RunError, f"{tries} workers died on {item!s:.100}, the last: {death}", {}
                if error is not None and failure is None:
                    # Its own constructor may take anything, and has made this text and these attributes already.
                    failure = error.__new__(error, made)
                    vars(failure).update(told)
                occupy(worker)
                if error is None:
                    yield item, made
    if failure is not None:
        raise failure
