"""What only this order promises: how well it shuffles, what it costs, and that it does not change unnoticed."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b
from itertools import islice, permutations
from math import factorial, isqrt
from typing import Any

import numpy as np
import pytest
from kolors_zarr.order.permutation import Permutation, key_of
from kolors_zarr.order.plan import ORDER_VERSION, Plan, Remainder, Stretch
from numpy.typing import NDArray

BILLIONS = 3_000_000_000
WORD = 1 << 64


def is_even(observed: NDArray[Any], expected: float, freedom: int) -> bool:
    """Tell whether counts are as even as chance makes them: chi-square within four standard deviations."""
    chi_square = float(((observed - expected) ** 2).sum() / expected)
    return abs(chi_square - freedom) < 4 * (2 * freedom) ** 0.5


def by_hand(n: int, key: bytes, index: int) -> int:
    """Return one number of a permutation by whole numbers of any length."""
    rounds = [int.from_bytes(key[4 * i : 4 * i + 4], "little") for i in range(8 if n >= 4096 else 16)]
    high = isqrt(n - 1) + 1
    high += high % 2
    low = -(-n // high)
    while True:
        digits = list(divmod(index, low))
        for i, key_word in enumerate(rounds):
            size = low if i % 2 else high
            mixed = (digits[1 - i % 2] + key_word) * 0x9E3779B97F4A7C15 % WORD
            mixed = (mixed ^ mixed >> 32) * 0xD6E8FEB86659FD93 % WORD
            digits[i % 2] = (digits[i % 2] + ((mixed >> 32) * size >> 32)) % size
        index = digits[0] * low + digits[1]
        if index < n:
            return index


@pytest.mark.parametrize("n", [1, 2, 3, 5, 9, 4095, 4096, 4097, BILLIONS, 2**40 + 1, 2**62])
def test_a_permutation_is_the_network_its_docstring_tells_of(n: int) -> None:
    places = np.unique(np.linspace(0, n - 1, 40).astype(np.int64).clip(0, n - 1))
    key = key_of(3, 1, "samples", 7)
    assert Permutation(n, key).at(places).tolist() == [by_hand(n, key, place) for place in places.tolist()]


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_all_orders_of_a_few_things_are_equally_frequent(n: int) -> None:
    trials, places = 100 * factorial(n), np.arange(n)
    found = Counter(tuple(Permutation(n, key_of(seed, 0, "test")).at(places).tolist()) for seed in range(trials))
    observed = np.array([found[order] for order in permutations(range(n))])
    assert is_even(observed, 100, factorial(n) - 1)


@pytest.mark.parametrize("n", [9, 25])
def test_half_of_all_orders_come_from_an_even_number_of_exchanges(n: int) -> None:
    def exchanges(seed: int) -> int:
        order = Permutation(n, key_of(seed, 0, "test")).at(np.arange(n))
        return int(np.tril(order[:, None] < order, -1).sum())

    assert is_even(np.bincount([exchanges(seed) % 2 for seed in range(1000)], minlength=2), 500, 1)


@pytest.mark.parametrize("n", [6, 9, 17, 64])
def test_every_thing_comes_equally_often_at_every_place_and_after_every_other(n: int) -> None:
    trials, places = 2000, np.arange(n)
    at, after = np.zeros((n, n)), np.zeros((n, n))
    for seed in range(trials):
        order = Permutation(n, key_of(seed, 5, "test")).at(places)
        at[places, order] += 1
        after[order[:-1], order[1:]] += 1
    assert is_even(at, trials / n, (n - 1) ** 2)
    assert is_even(after[~np.eye(n, dtype=bool)], trials / n, n * (n - 1) - 1)


@pytest.mark.parametrize("n", [1000, 4096, 100_003, 5_000_011, BILLIONS, 2**40])
def test_a_large_order_has_no_trend_and_nothing_in_common_with_the_next_epoch(n: int) -> None:
    places = np.arange(min(n, 200_000))
    now, later = (Permutation(n, key_of(0, epoch, "samples")).at(places) for epoch in (0, 1))
    most = 4 / len(places) ** 0.5  # four standard deviations of the correlation of independent values
    for one, other in ((now[1:], now[:-1]), (now[isqrt(n) % 997 :], places), (now, places), (now, later)):
        length = min(len(one), len(other))
        assert abs(np.corrcoef(one[:length], other[:length])[0, 1]) < most
    assert is_even(np.bincount(now * 50 // n, minlength=50), len(places) / 50, 49) or len(places) == n
    for divisor in (2, 3, 10):
        pairs = np.bincount(now[:-1] % divisor * divisor + now[1:] % divisor, minlength=divisor**2)
        assert is_even(pairs, (len(places) - 1) / divisor**2, divisor**2 - 1)


def test_three_billion_are_permuted_one_to_one_in_the_memory_of_the_answer() -> None:
    order = Permutation(BILLIONS, key_of(0, 0, "samples"))
    starts = [0, 1_499_999_000, BILLIONS - 8192, *np.random.default_rng(0).integers(0, BILLIONS - 8192, 20).tolist()]
    found = []
    tracemalloc.start()
    try:
        for start in starts:
            places = np.arange(start, start + 8192)
            numbers = order.at(places)
            # The inverse is one by its own making, so nothing outside the block has these numbers either.
            assert (order.index_of(numbers) == places).all()
            found.append(numbers)
        assert tracemalloc.get_traced_memory()[1] < 64 * 8192 * 8
    finally:
        tracemalloc.stop()
    together = np.concatenate(found)
    assert together.min() >= 0 and together.max() < BILLIONS
    assert len(np.unique(together)) == len(together)


def test_a_permutation_refuses_what_it_has_no_place_for() -> None:
    assert Permutation(0, key_of(0, 0, "test")).at(np.arange(0)).tolist() == []
    assert Permutation(7, key_of(0, 0, "test")).at(np.zeros((2, 3), np.int64)).shape == (2, 3)
    for n, index in ((0, 0), (5, 5), (5, -1)):
        with pytest.raises(ValueError, match=f"{index} to {index} is not inside a permutation of {n}"):
            Permutation(n, key_of(0, 0, "test")).at(np.array([index]))
    for n, key in ((-1, key_of(0, 0, "test")), (2**62 + 1, key_of(0, 0, "test")), (5, b"short")):
        with pytest.raises(ValueError, match="64 bytes"):
            Permutation(n, key)


def plainly(counts: list[int], *, batch: int, world: int, seed: int, epoch: int) -> Iterator[list[Any]]:
    """Yield the steps of a padded epoch, for each rank (bucket, samples that count): the rule, step by step."""
    left = [
        Permutation(count, key_of(seed, epoch, "samples", bucket)).at(np.arange(count)).tolist()
        for bucket, count in enumerate(counts)
    ]
    size = batch * world
    labels = [bucket for bucket, count in enumerate(counts) for _ in range(count // size)]
    for place in Permutation(len(labels), key_of(seed, epoch, "full")).at(np.arange(len(labels))):
        taken, left[labels[place]] = left[labels[place]][:size], left[labels[place]][size:]
        yield [(labels[place], taken[rank * batch : (rank + 1) * batch]) for rank in range(world)]
    labels = [bucket for bucket, rest in enumerate(left) for _ in range(0, len(rest), batch)]
    step = list[Any]()
    for place in Permutation(len(labels), key_of(seed, epoch, "tail")).at(np.arange(len(labels))):
        taken, left[labels[place]] = left[labels[place]][:batch], left[labels[place]][batch:]
        step.append((labels[place], taken))
        if len(step) == world:
            yield step
            step = []
    if step:
        yield step + [(step[0][0], [])] * (world - len(step))


@pytest.mark.parametrize(("batch", "world"), [(1, 1), (4, 1), (3, 5), (32, 2), (7, 64)])
def test_a_plan_is_the_rule_followed_step_by_step(batch: int, world: int) -> None:
    counts = [0, 1, 977, 40, 1, 0, 260, 3]
    plan = Plan(counts, batch=batch, world=world, seed=9, epoch=4)
    wanted = list(plainly(counts, batch=batch, world=world, seed=9, epoch=4))
    assert len(wanted) == plan.steps
    for rank in range(world):
        found = [(each.bucket, each.samples[: each.real].tolist()) for each in plan.batches(rank)]
        assert found == [step[rank] for step in wanted]


def test_a_long_plan_is_the_rule_too_wherever_one_begins_to_read_it() -> None:
    counts = [17_000, 0, 23_001]
    plan = Plan(counts, batch=1, world=1, seed=9, epoch=0)
    wanted = [(bucket, *samples) for [(bucket, samples)] in plainly(counts, batch=1, world=1, seed=9, epoch=0)]
    for skip in (0, 20_000, plan.steps - 1):
        assert [(each.bucket, *each.samples.tolist()) for each in plan.batches(0, skip=skip)] == wanted[skip:]


def test_a_restart_in_the_tail_goes_on_in_it() -> None:
    def order(*before: Stretch) -> list[int]:
        return [each.bucket for each in Plan([3] * 12, batch=4, world=1, seed=0, epoch=0, before=before).batches(0)]

    assert order(Stretch(0, 4, 1, 3), Stretch(0, 4, 1, 2)) == order()[5:]
    assert sorted(order(Stretch(0, 4, 1, 5), Stretch(0, 2, 2, 0))) == sorted(order()[5:])


def test_full_steps_draw_the_buckets_in_proportion_from_first_to_last() -> None:
    counts = [8_000, 16_000, 40_000, 96_000]
    labels = np.array([each.bucket for each in Plan(counts, batch=8, world=1, seed=1, epoch=0).batches(0)])
    for part in np.split(labels[:20_000], 10):
        observed, expected = np.bincount(part, minlength=4), np.array(counts) / 80
        assert ((observed - expected) ** 2 / expected).sum() < 3 + 4 * 6**0.5
    repeats = (labels[1:] == labels[:-1]).mean()
    assert repeats == pytest.approx((np.array(counts) ** 2).sum() / sum(counts) ** 2, abs=4 * 0.5 / 20_000**0.5)


@pytest.mark.parametrize(("samples", "batch", "world", "most"), [(20_000, 16, 8, 0.03), (1_000_000, 16, 64, 0.001)])
def test_few_slots_are_idle_with_forty_buckets_of_which_twelve_are_nearly_empty(
    samples: int, batch: int, world: int, most: float
) -> None:
    shares = np.exp(-0.19 * np.arange(40))
    counts = (shares / shares.sum() * samples).astype(int).tolist()
    assert sum(count < 0.001 * samples for count in counts) == 12
    plan = Plan(counts, batch=batch, world=world, seed=0, epoch=0)
    rows = plan.report()
    idle = sum(row.padded for row in rows)
    assert idle == plan.steps * batch * world - sum(counts)
    assert idle / samples < most
    # Filling every bucket up to a global batch would leave far more of them idle.
    assert idle < 0.2 * sum(-count % (batch * world) for count in counts)


@pytest.mark.parametrize("remainder", ["pad", "drop", "carry"])
@pytest.mark.parametrize("counts", [[], [0], [0, 0, 0], [1], [0, 3, 0]])
def test_hardly_any_samples_are_no_trouble(counts: list[int], remainder: Remainder) -> None:
    plan = Plan(counts, batch=4, world=3, seed=0, epoch=0, remainder=remainder)
    steps = 1 if sum(counts) and remainder == "pad" else 0
    assert (plan.steps, plan.full_steps) == (steps, 0)
    for rank in range(3):
        assert [each.real for each in plan.batches(rank)] == [min(sum(counts), 4) if rank == 0 else 0] * steps
    assert [row.samples for row in plan.report()] == counts


def test_carrying_fills_a_batch_over_many_epochs_from_a_bucket_smaller_than_it() -> None:
    order = list[int]()
    for epoch in range(16):
        for each in Plan([3], batch=8, world=1, seed=0, epoch=epoch, remainder="carry").batches(0):
            assert each.real == 8
            order += each.samples.tolist()
    assert len(order) == 48
    turns = [tuple(order[start : start + 3]) for start in range(0, 48, 3)]
    assert all(sorted(turn) == [0, 1, 2] for turn in turns)
    assert len(set(turns)) > 1


def test_a_change_of_batch_between_epochs_leaves_nothing_of_what_was_carried() -> None:
    first = Plan([10], batch=8, world=1, seed=0, epoch=0, remainder="carry")
    second = Plan([10], batch=3, world=1, seed=0, epoch=1, remainder="carry", before=[Stretch(1, 8, 1, 0)])
    (row,) = second.report()
    assert (row.due, row.full_batches, row.carried) == (12, 4, 0)
    order = [n for plan in (first, second) for each in plan.batches(0) for n in each.samples.tolist()]
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch": 0}, "batch and a world of at least 1"),
        ({"world": 0}, "batch and a world of at least 1"),
        ({"epoch": -1}, "need them in order, from 0"),
        ({"counts": [5, -1]}, "need counts from 0"),
        ({"counts": [2**62], "epoch": 1}, "need counts from 0 to 2\\^62"),
        ({"remainder": "keep"}, "'keep' is none of pad, drop, carry"),
        ({"before": [(1, 4, 1, 1)]}, "need them in order"),
        ({"before": [(0, 4, 1, -1)]}, "no fewer than 0 steps"),
        ({"before": [(0, 4, 1, 3), (0, 2, 1, 5)]}, "steps=5\\) is 1 steps longer than what was left"),
    ],
)
def test_a_plan_says_which_argument_makes_no_sense(changed: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"counts": [20], "batch": 4, "world": 1, "seed": 0, "epoch": 0}
    with pytest.raises(ValueError, match=message):
        Plan(**{**arguments, **changed})


@pytest.mark.parametrize(("rank", "skip"), [(-1, 0), (2, 0), (0, -1)])
def test_a_rank_outside_the_world_and_a_skip_below_zero_are_refused(rank: int, skip: int) -> None:
    with pytest.raises(ValueError, match=f"rank {rank} of 2 with skip {skip}"):
        next(Plan([9], batch=1, world=2, seed=0, epoch=0).batches(rank, skip=skip))


def test_a_plan_of_billions_is_sought_in_without_a_table_of_them() -> None:
    tracemalloc.start()
    try:
        plan = Plan([BILLIONS // 3, BILLIONS // 2, BILLIONS // 6], batch=32, world=512, seed=0, epoch=0)
        each = next(plan.batches(511, skip=plan.steps // 2))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert each.real == len(set(each.samples.tolist())) == 32


def rows(*counts: int, remainder: Remainder = "pad", before: tuple[Stretch, ...] = ()) -> str:
    """Return a hash of the first 1,000 batches of two ranks."""
    plan = Plan(counts, batch=4, world=2, seed=7, epoch=3, remainder=remainder, before=before)
    both = (each for step in zip(plan.batches(0), plan.batches(1), strict=True) for each in step)
    lines = [f"{each.bucket} {each.real} {each.samples.tolist()}" for each in islice(both, 1000)]
    assert len(lines) == 1000
    return blake2b("\n".join(lines).encode(), digest_size=8).hexdigest()


def test_an_order_never_changes_under_the_same_version() -> None:
    # Pinned when version 1 was made. If one of these must change, so must ORDER_VERSION: no run can go on then.
    small, changes = (5, 0, 1301, 1, 2690), (Stretch(0, 2, 8, 100), Stretch(3, 3, 4, 20), Stretch(3, 5, 1, 1))
    assert ORDER_VERSION == 1
    assert rows(*small) == "87c9942b79460fa1"
    assert rows(*small, 999, remainder="carry", before=changes) == "c9c44554669c32d9"
    assert rows(BILLIONS, 2**40) == "e3b8111d2ff67783"


def test_the_order_is_made_without_torch() -> None:
    script = "import sys, kolors_zarr.order.plan; sys.exit('torch' in sys.modules or 'zarr' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
