"""Cutting attention into blocks whose scores stay in a core's cache."""

from __future__ import annotations

from collections.abc import Iterator

SCORES = 2**18
"""Scores at a time: 1 MiB of float32, what a core of a server has for itself."""


def blocks(batch: int, heads: int, rows: int, keys: int) -> Iterator[tuple[slice, slice, list[slice]]]:
    """Yield pictures, heads and the parts of rows of each block: several heads only with all rows, several pictures
    only with all heads.
    """
    high = min(rows, max(1, SCORES // keys))
    wide = min(heads, max(1, SCORES // (keys * rows)))
    deep = min(batch, max(1, SCORES // (keys * rows * heads)))
    parts = [slice(row, row + high) for row in range(0, rows, high)]
    for picture in range(0, batch, deep):
        for head in range(0, heads, wide):
            yield slice(picture, picture + deep), slice(head, head + wide), parts
