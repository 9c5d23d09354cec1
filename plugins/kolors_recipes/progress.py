"""How far a long job is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType

from tqdm import tqdm

LINE_EVERY = 15.0
"""Seconds between two lines where there is no terminal."""

logger = logging.getLogger(__name__)


class Progress:
    """Counts towards a total, or without one (None); a context manager.

    `silent`: another process says it. `passing`: when it is over, nothing more is said of it.
    """

    def __init__(
        self, label: str, total: int | None, *, done: int = 0, silent: bool = False, passing: bool = False
    ) -> None:
        self._label, self._total, self._done, self._first = label, total, done, done
        self._silent, self._passing = silent, passing
        shown = sys.stderr.isatty() and not silent
        self._bar = tqdm(total=total, initial=done, desc=label, file=sys.stderr, leave=not passing) if shown else None
        self._started = self._said = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
        elif error is None and not self._passing:
            self._say("")

    def advance(self, note: str = "", *, by: int = 1) -> None:
        """Count `by` more (0: only news), with a word on how it goes."""
        self._done += by
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=by == 0)
            self._bar.update(by)
        elif time.monotonic() - self._said >= LINE_EVERY:
            self._say(note)

    def _say(self, note: str) -> None:
        if self._silent:
            return
        self._said = time.monotonic()
        rate = (self._done - self._first) / max(self._said - self._started, 1e-9)
        of = "" if self._total is None else f" of {self._total}"
        pace = f"{rate:.1f} a second" if rate >= 0.1 or rate == 0 else f"{1 / rate:.0f} seconds each"
        logger.info("%s: %d%s, %s%s", self._label, self._done, of, pace, f", {note}" if note else "")
