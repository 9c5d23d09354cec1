"""What a source found in its store, and what it gave out so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

Size = tuple[int, int]
NAMED = 5
"""How many samples or reasons a message names."""


@dataclass
class Report:
    """What a source found in its store when it was built, and what it gave out since.

    dropped counts by filter and reason. refused has, for each reason why a picture has no bucket, how many there are
    and the first of them in words. buckets counts the samples that are left, by (height, width); captions those that
    have a caption, by its key; lacking those that have no caption, and those that have none whose key has a word in
    it, such as zh or synthetic.
    chosen counts the captions given out, copies not, and damaged the samples that others stood in for.
    """

    store: str
    samples: int
    dropped: Counter[str] = field(default_factory=Counter)
    refused: list[tuple[int, Sequence[str]]] = field(default_factory=list)
    buckets: dict[Size, int] = field(default_factory=dict)
    captions: dict[str, int] = field(default_factory=dict)
    lacking: dict[str, int] = field(default_factory=dict)
    chosen: Counter[str] = field(default_factory=Counter)
    damaged: int = 0

    @property
    def selected(self) -> int:
        """How many samples an epoch has."""
        return sum(self.buckets.values())

    def lines(self) -> Iterator[str]:
        """Yield what was found when the source was built, a line for each thing."""
        yield f"{self.store}: {self.selected} of {self.samples} samples, {_counts(self.buckets_in_words())}"
        yield from self.lost()
        lacking = {f"no {word}": count for word, count in self.lacking.items() if count}
        if lacking:
            yield f"captions: {_counts(lacking)}; what is there takes the turns of what is not"

    def lost(self) -> Iterator[str]:
        """Yield why samples are not used."""
        if self.dropped:
            rest = self.dropped.total() - sum(count for _, count in self.dropped.most_common(NAMED))
            more = f", and {rest} for other reasons" if rest else ""
            yield f"dropped by filters: {_counts(dict(self.dropped.most_common(NAMED)))}{more}"
        for count, first in self.refused:
            more = f" and {count - len(first)} more" if count > len(first) else ""
            yield f"no bucket for {count}: {'; '.join(first)}{more}"

    def buckets_in_words(self) -> dict[str, int]:
        """Return the buckets by their names."""
        return {f"{height}x{width}": count for (height, width), count in self.buckets.items()}


def _counts(named: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in named.items())
