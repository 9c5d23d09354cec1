"""Every picture goes to the bucket that costs it least, to one alone, and is never enlarged where that is ruled out."""

from __future__ import annotations

from fractions import Fraction
from math import isqrt

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from kolors_zarr.buckets.assign import Bucketing, nearest
from kolors_zarr.buckets.rule import bounded_sizes

Size = tuple[int, int]

SIDES = st.one_of(st.integers(1, 40), st.integers(1, 20_000))
PICTURES = st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=30)
BUCKETS = st.one_of(
    st.lists(st.tuples(st.integers(1, 24), st.integers(1, 24)), min_size=1, max_size=12, unique=True),
    st.lists(st.tuples(st.integers(1, 2048), st.integers(1, 2048)), min_size=1, max_size=40, unique=True),
).map(lambda sizes: tuple(sorted(sizes)))


def columns(pictures: list[Size]) -> tuple[list[int], list[int]]:
    return [height for height, _ in pictures], [width for _, width in pictures]


def kept(picture: Size, bucket: Size) -> Fraction:
    """Return the share of a picture inside its bucket once it is scaled to cover it, by the definition of both."""
    scale = max(Fraction(bucket[0], picture[0]), Fraction(bucket[1], picture[1]))
    return Fraction(bucket[0] * bucket[1]) / (picture[0] * scale * picture[1] * scale)


@settings(max_examples=300, deadline=None)
@given(pictures=PICTURES, sizes=BUCKETS)
def test_no_bucket_keeps_more_of_a_picture_than_the_nearest(pictures: list[Size], sizes: tuple[Size, ...]) -> None:
    found = nearest(*columns(pictures), sizes=sizes)
    for picture, index in zip(pictures, found.tolist(), strict=True):
        shares = [kept(picture, size) for size in sizes]
        assert index == shares.index(max(shares))  # the first of equals


@settings(max_examples=100, deadline=None)
@given(
    pictures=PICTURES,
    sizes=BUCKETS,
    min_side=st.integers(1, 400),
    max_loss=st.floats(0, 1),
    no_upscale=st.booleans(),
    cut=st.integers(0, 30),
)
def test_buckets_and_refusals_partition_any_set(
    pictures: list[Size], sizes: tuple[Size, ...], min_side: int, max_loss: float, no_upscale: bool, cut: int
) -> None:
    bucketing = Bucketing(sizes, min_side=min_side, max_loss=max_loss, no_upscale=no_upscale, step=8)
    whole = bucketing.assign(*columns(pictures))
    assert len(whole.sizes) == len(whole.reasons) == len(pictures)
    for picture, bucket, reason in zip(pictures, whole.sizes.tolist(), whole.reasons.tolist(), strict=True):
        if reason:
            assert bucket == [0, 0]
            assert f"{picture[0]} x {picture[1]}" in bucketing.sentence(reason, picture)
        else:
            assert min(picture) >= min_side
            assert float(1 - kept(picture, tuple(bucket))) <= max_loss + 1e-12
            assert tuple(bucket) in sizes or no_upscale
    # What becomes of a picture does not depend on those it is asked about with.
    parts = [bucketing.assign(*columns(part)) for part in (pictures[:cut], pictures[cut:])]
    assert np.array_equal(np.concatenate([part.sizes for part in parts]), whole.sizes)
    assert np.array_equal(np.concatenate([part.reasons for part in parts]), whole.reasons)


@settings(max_examples=200, deadline=None)
@given(pictures=PICTURES, sizes=BUCKETS, step=st.sampled_from([1, 8, 64]))
def test_a_picture_is_never_enlarged_where_that_is_ruled_out(
    pictures: list[Size], sizes: tuple[Size, ...], step: int
) -> None:
    found = Bucketing(sizes, no_upscale=True, step=step).assign(*columns(pictures))
    table = nearest(*columns(pictures), sizes=sizes)
    area, shortest = max(height * width for height, width in sizes), min(map(min, sizes))
    for picture, bucket, index in zip(pictures, map(tuple, found.sizes.tolist()), table.tolist(), strict=True):
        if all(side <= there for side, there in zip(sizes[index], picture, strict=True)):
            assert bucket == sizes[index]
            continue
        # A size of its own: the picture's, shrunk to the largest area, in whole numbers alone.
        sides = [min(a, isqrt(area * a // b)) // step * step for a, b in (picture, picture[::-1])]
        assert bucket == (tuple(sides) if min(sides) >= shortest else (0, 0))
        assert bucket[0] <= picture[0] and bucket[1] <= picture[1]
        assert bucket[0] * bucket[1] <= area


@settings(max_examples=100, deadline=None)
@given(step=st.integers(1, 32), shortest=st.integers(1, 12), longer=st.integers(0, 40), more=st.integers(0, 60))
def test_the_rule_yields_the_largest_sizes_within_its_bounds(step: int, shortest: int, longer: int, more: int) -> None:
    least, most, base = shortest * step, (shortest + longer) * step, shortest * step
    area = least * least + more * step * step
    sizes = bounded_sizes(area=area, shortest_side=least, longest_side=most, step=step, base=base)
    sides = range(step, most + 1, step)
    allowed = {(h, w) for h in sides for w in sides if h * w <= area}
    # With one side from the least on, the other cannot grow by a step.
    full = {(h, w) for h, w in allowed if w >= least and w * least <= area and (h + step, w) not in allowed}
    expected = full | {(w, h) for h, w in full}
    assert set(sizes) - expected <= {(base, base)}
    assert expected <= set(sizes)
    assert any(h == w for h, w in sizes)
    assert list(sizes) == sorted(set(sizes))
    assert all((w, h) in sizes for h, w in sizes)
    assert all(h * w <= area and h % step == w % step == 0 and max(h, w) <= most for h, w in sizes)
