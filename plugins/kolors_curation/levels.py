"""Choosing samples by the level of quality they were given (2.2.1)."""

from __future__ import annotations

from kolors_kernel.values import SampleRecord

LEVEL = "level"
"""The tag that holds a sample's level, a whole number as text."""


class LevelFilter:
    """Drops a sample unless its tag `level` is a whole number of at least `at_least`.

    `reads` names the tags that decide: samples that agree in them share one answer.
    """

    reads = frozenset({LEVEL})

    def __init__(self, *, at_least: int) -> None:
        self.at_least = at_least

    def reason_to_drop(self, record: SampleRecord) -> str | None:
        """Return what is wrong with a sample's level, or None to keep it."""
        if LEVEL not in record.tags:
            return f"it has no tag '{LEVEL}'"
        text = record.tags[LEVEL]
        if not (text.isascii() and text.isdigit()):
            return f"its tag '{LEVEL}' is '{text}', which is no level"
        return None if int(text) >= self.at_least else f"its level is {int(text)}, below {self.at_least}"
