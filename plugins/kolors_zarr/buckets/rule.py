"""The rule NovelAI published for its buckets (2.2.2): for each side, the longest other side that the area allows."""

from __future__ import annotations


def bounded_sizes(
    *, area: int, shortest_side: int, longest_side: int, step: int, base: int
) -> tuple[tuple[int, int], ...]:
    """Return the sorted (height, width) of at most `area` pixels, the sides multiples of `step` within the bounds.

    Each size has its mirror. A square of side `base` is added where the rule yields no square of its own.
    """
    sizes = set[tuple[int, int]]()
    for side in range(shortest_side, min(longest_side, area // shortest_side) + 1, step):
        other = min(longest_side, area // side) // step * step
        sizes |= {(side, other), (other, side)}
    if all(height != width for height, width in sizes):
        sizes.add((base, base))
    return tuple(sorted(sizes))
