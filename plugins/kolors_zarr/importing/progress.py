"""How far a long import is, said now and then."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

LINE_EVERY = 15.0
"""Seconds between two lines."""

T = TypeVar("T")
logger = logging.getLogger(__name__)


def counted(things: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Yield the things and say how many there were, out of how many."""
    started = said = time.monotonic()
    for number, thing in enumerate(things, start=1):
        yield thing
        now = time.monotonic()
        if number == total or now - said >= LINE_EVERY:
            said = now
            logger.info("%s: %d of %d in %.0f s", what, number, total, now - started)
