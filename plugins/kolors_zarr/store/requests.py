"""Several requests to a place at a time, with the answers in order and few of them waiting."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self, TypeVar

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class Requests:
    """Asks for up to `at_once` things at a time and per call; nothing more is asked until an answer is taken.

    Safe for several threads. With `at_once` 1 the caller's own thread does the work. Where a `with` of it ends, so has
    all that was asked.
    """

    def __init__(self, at_once: int) -> None:
        self.at_once = at_once
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="store")  # no thread starts before it is used

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()

    def answers(self, ask: Callable[[Asked], Answer], things: Iterable[Asked]) -> Iterator[Answer]:
        """Yield what `ask` returns for each, in order."""
        if self.at_once == 1:
            yield from map(ask, things)
            return
        waiting: deque[Future[Answer]] = deque()
        for thing in things:
            waiting.append(self._pool.submit(ask, thing))
            if len(waiting) == self.at_once:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
