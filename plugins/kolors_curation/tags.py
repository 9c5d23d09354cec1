"""Choosing samples by their tags (2.2.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kolors_kernel.values import SampleRecord


class TagFilter:
    """Drops a sample unless each tag in `where` has one of its values and no tag in `without` has one of its own.

    `reads` names the tags that decide: samples that agree in them share one answer.
    """

    def __init__(self, *, where: Mapping[str, Sequence[str]], without: Mapping[str, Sequence[str]]) -> None:
        self.where = {tag: frozenset(values) for tag, values in where.items()}
        self.without = {tag: frozenset(values) for tag, values in without.items()}
        self.reads = frozenset({*where, *without})

    def reason_to_drop(self, record: SampleRecord) -> str | None:
        """Return the first tag that speaks against a sample, or None to keep it."""
        for tag, values in self.where.items():
            if tag not in record.tags:
                return f"it has no tag '{tag}'"
            if record.tags[tag] not in values:
                return f"its tag '{tag}' is '{record.tags[tag]}', not {' or '.join(sorted(values))}"
        for tag, values in self.without.items():
            if record.tags.get(tag) in values:
                return f"its tag '{tag}' is '{record.tags[tag]}'"
        return None
