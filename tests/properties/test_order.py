"""What holds for the order of every epoch: any buckets, batches and worlds, and any chain of interruptions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kolors_zarr.order.permutation import Permutation, key_of
from kolors_zarr.order.plan import Plan, RankBatch, Remainder, Stretch

COUNTS = st.lists(st.one_of(st.integers(0, 5), st.integers(0, 150)), max_size=6)
SHAPES = st.tuples(st.integers(1, 9), st.one_of(st.integers(1, 4), st.integers(1, 64)))  # batch, world
SEEDS = st.integers(-(2**70), 2**70)
REMAINDERS = st.sampled_from(["pad", "drop", "carry"])
CALM = settings(deadline=None)
Step = list[RankBatch]


def steps_of(plan: Plan, *, world: int, skip: int = 0) -> list[Step]:
    """Return the batches of all ranks, step after step."""
    ranks = [list(plan.batches(rank, skip=skip)) for rank in range(world)]
    assert {len(rank) for rank in ranks} == {max(plan.steps - skip, 0)}
    return [list(step) for step in zip(*ranks, strict=True)]


def shown(steps: list[Step]) -> list[list[tuple[int, list[int], int]]]:
    return [[(each.bucket, each.samples.tolist(), each.real) for each in step] for step in steps]


def trained(steps: list[Step]) -> list[tuple[int, int]]:
    """Return every sample that counts as (bucket, number), in the order it comes in."""
    return [(each.bucket, n) for step in steps for each in step for n in each.samples[: each.real].tolist()]


def all_of(counts: Sequence[int]) -> Counter[tuple[int, int]]:
    return Counter((bucket, number) for bucket, count in enumerate(counts) for number in range(count))


def some_of(plan: Plan) -> st.SearchStrategy[int]:
    """Draw a number of steps to do, as often as not up to somewhere in the tail."""
    return st.one_of(st.integers(0, plan.steps), st.integers(plan.full_steps, plan.steps))


def run_to(
    data: st.DataObject, counts: list[int], epoch: int, before: list[Stretch], *, seed: int, remainder: Remainder
) -> list[Step]:
    """Train until the end of an epoch with interruptions; note them in `before` and return all steps."""
    done = list[Step]()
    batch, world = data.draw(SHAPES, label="shape")
    for change in data.draw(st.lists(st.sampled_from(["shape", "split", "nothing"]), max_size=3), label="changes"):
        plan = Plan(counts, batch=batch, world=world, seed=seed, epoch=epoch, remainder=remainder, before=before)
        steps = data.draw(some_of(plan), label="steps")
        done += steps_of(plan, world=world)[:steps]
        before.append(Stretch(epoch, batch, world, steps))
        if change == "shape":
            batch, world = data.draw(SHAPES, label="shape")
        elif change == "split":
            batch, world = world, batch
    plan = Plan(counts, batch=batch, world=world, seed=seed, epoch=epoch, remainder=remainder, before=before)
    before.append(Stretch(epoch + 1, batch, world, 0))
    return done + steps_of(plan, world=world)


@CALM
@given(COUNTS, SHAPES, SEEDS, st.integers(0, 10**6))
def test_every_sample_counts_once_and_the_tail_is_short(
    counts: list[int], shape: tuple[int, int], seed: int, epoch: int
) -> None:
    batch, world = shape
    plan = Plan(counts, batch=batch, world=world, seed=seed, epoch=epoch)
    steps = steps_of(plan, world=world)
    assert Counter(trained(steps)) == all_of(counts)
    used = sum(count > 0 for count in counts)
    assert plan.full_steps == sum(count // (batch * world) for count in counts)
    assert plan.steps - plan.full_steps <= used
    assert plan.steps * batch * world - sum(counts) <= used * (batch - 1) + (world - 1) * batch


@CALM
@given(COUNTS, SHAPES, SEEDS, REMAINDERS)
def test_all_ranks_are_in_one_bucket_until_the_tail(
    counts: list[int], shape: tuple[int, int], seed: int, remainder: Remainder
) -> None:
    batch, world = shape
    plan = Plan(counts, batch=batch, world=world, seed=seed, epoch=3, remainder=remainder)
    steps = steps_of(plan, world=world)
    for step in steps[: plan.full_steps]:
        assert len({each.bucket for each in step}) == 1
        assert {each.real for each in step} == {batch}
    assert remainder == "pad" or plan.steps == plan.full_steps


@CALM
@given(COUNTS, SHAPES, SEEDS)
def test_a_copy_repeats_what_the_step_has_in_that_bucket(counts: list[int], shape: tuple[int, int], seed: int) -> None:
    batch, world = shape
    for step in steps_of(Plan(counts, batch=batch, world=world, seed=seed, epoch=0), world=world):
        real = {(each.bucket, n) for each in step for n in each.samples[: each.real].tolist()}
        for each in step:
            assert len(each.samples) == batch
            if each.real:
                assert each.samples.tolist() == [each.samples[i % each.real] for i in range(batch)]
            assert {(each.bucket, n) for n in each.samples.tolist()} <= real


@CALM
@given(COUNTS, SHAPES, SEEDS, REMAINDERS, st.data())
def test_skipping_gives_the_rest_of_the_whole(
    counts: list[int], shape: tuple[int, int], seed: int, remainder: Remainder, data: st.DataObject
) -> None:
    batch, world = shape
    plan = Plan(counts, batch=batch, world=world, seed=seed, epoch=2, remainder=remainder)
    whole = shown(steps_of(plan, world=world))
    skip = data.draw(some_of(plan) | st.just(plan.steps + 2))
    assert shown(steps_of(plan, world=world, skip=skip)) == whole[skip:]
    # The same, said as a stretch that ended, and another that never came to a step.
    before = [(2, batch, world, min(skip, plan.steps)), (2, *data.draw(SHAPES), 0)]
    again = Plan(counts, batch=batch, world=world, seed=seed, epoch=2, remainder=remainder, before=before)
    assert shown(steps_of(again, world=world)) == whole[skip:]


@CALM
@given(COUNTS, SEEDS, REMAINDERS, st.sampled_from([1, 6, 16, 24, 64]), st.data())
def test_a_global_batch_does_not_depend_on_how_it_is_shared_out(
    counts: list[int], seed: int, remainder: Remainder, size: int, data: st.DataObject
) -> None:
    worlds = st.sampled_from([world for world in (1, 2, 3, 8, 24, 64) if size % world == 0])
    one, other = data.draw(worlds), data.draw(worlds)
    first = Plan(counts, batch=size // one, world=one, seed=seed, epoch=1, remainder=remainder)
    order = trained(steps_of(first, world=one)[: first.full_steps])
    done = data.draw(st.integers(0, first.full_steps))
    before = [(1, size // one, one, done)]
    rest = Plan(counts, batch=size // other, world=other, seed=seed, epoch=1, remainder=remainder, before=before)
    assert rest.full_steps == first.full_steps - done
    assert trained(steps_of(rest, world=other)[: rest.full_steps]) == order[done * size :]


@CALM
@given(COUNTS, SEEDS, st.data())
def test_any_chain_of_interruptions_trains_on_every_sample_once(
    counts: list[int], seed: int, data: st.DataObject
) -> None:
    assert Counter(trained(run_to(data, counts, 5, [], seed=seed, remainder="pad"))) == all_of(counts)


@CALM
@given(COUNTS, SEEDS, st.data())
def test_dropping_never_repeats_and_leaves_out_less_than_a_global_batch(
    counts: list[int], seed: int, data: st.DataObject
) -> None:
    before = list[Stretch]()
    for epoch in range(2):
        seen = Counter(trained(run_to(data, counts, epoch, before, seed=seed, remainder="drop")))
        left = all_of(counts) - seen
        assert seen + left == all_of(counts)
        batch, world = before[-1].batch, before[-1].world
        assert all(number < batch * world for number in Counter(bucket for bucket, _ in left).values())


@CALM
@given(COUNTS, SEEDS, st.data())
def test_carrying_makes_pass_after_pass_over_each_bucket_without_a_gap(
    counts: list[int], seed: int, data: st.DataObject
) -> None:
    before, steps = list[Stretch](), list[Step]()
    for epoch in range(2):
        steps += run_to(data, counts, epoch, before, seed=seed, remainder="carry")
        size = before[-1].batch * before[-1].world
        order = trained(steps)
        for bucket, count in enumerate(counts):
            stream = [number for found, number in order if found == bucket]
            assert (epoch + 1) * count - size < len(stream) <= (epoch + 1) * count
            for start in range(0, len(stream), max(count, 1)):
                turn = stream[start : start + count]
                assert len(set(turn)) == len(turn)


@CALM
@given(COUNTS, SHAPES, SEEDS, st.integers(0, 9))
def test_carrying_without_a_change_needs_no_memory_of_earlier_epochs(
    counts: list[int], shape: tuple[int, int], seed: int, epoch: int
) -> None:
    batch, world = shape
    plan = Plan(counts, batch=batch, world=world, seed=seed, epoch=epoch, remainder="carry")
    size = batch * world
    assert [row.full_batches for row in plan.report()] == [(epoch + 1) * n // size - epoch * n // size for n in counts]


@CALM
@given(COUNTS, SEEDS, REMAINDERS, st.data())
def test_the_report_is_what_happens(counts: list[int], seed: int, remainder: Remainder, data: st.DataObject) -> None:
    before = list[Stretch]()
    run_to(data, counts, 0, before, seed=seed, remainder=remainder)
    batch, world = data.draw(SHAPES)
    plan = Plan(counts, batch=batch, world=world, seed=seed, epoch=1, remainder=remainder, before=before)
    before.append(Stretch(1, batch, world, data.draw(some_of(plan))))
    plan = Plan(counts, batch=batch, world=world, seed=seed, epoch=1, remainder=remainder, before=before)
    steps, size = steps_of(plan, world=world), batch * world
    real, slots = Counter[int](), Counter[int]()
    for step in steps:
        for each in step:
            real[each.bucket] += each.real
            slots[each.bucket] += len(each.samples)
    rows = plan.report()
    assert [(row.bucket, row.samples) for row in rows] == list(enumerate(counts))
    assert sum(row.full_batches for row in rows) == plan.full_steps
    for row in rows:
        assert real[row.bucket] == row.due - row.dropped - row.carried
        assert slots[row.bucket] - real[row.bucket] == row.padded
        assert row.due == row.full_batches * size + row.left_over
        assert row.left_over == {"pad": row.left_over, "drop": row.dropped, "carry": row.carried}[remainder]


@pytest.mark.parametrize("remainder", ["pad", "drop", "carry"])
def test_epochs_seeds_and_buckets_are_in_unrelated_orders(remainder: Remainder) -> None:
    def order(seed: int, epoch: int) -> list[tuple[int, int]]:
        plan = Plan([2000, 2000], batch=8, world=2, seed=seed, epoch=epoch, remainder=remainder)
        return trained(steps_of(plan, world=2))

    orders = [order(0, 0), order(0, 1), order(1, 0), order(1, 1)]
    sequences = [[n for bucket, n in one if bucket == wanted] for one in orders for wanted in (0, 1)]
    sequences += [[bucket for bucket, _ in one[::16]] for one in orders]
    for i, one in enumerate(sequences):
        for other in sequences[i + 1 :]:
            length = min(len(one), len(other))
            correlation = np.corrcoef(one[:length], other[:length])[0, 1]
            assert abs(correlation) < 4 / length**0.5  # four standard deviations


@CALM
@given(st.one_of(st.integers(0, 40), st.integers(0, 5000)), SEEDS, st.integers(0, 99))
def test_a_permutation_has_every_number_once_and_can_be_inverted(n: int, seed: int, epoch: int) -> None:
    order = Permutation(n, key_of(seed, epoch, "test"))
    places = np.arange(n)
    numbers = order.at(places)
    assert sorted(numbers.tolist()) == places.tolist()
    assert (order.index_of(numbers) == places).all()


@CALM
@given(st.integers(1, 2**62), SEEDS, st.data())
def test_a_permutation_of_any_size_is_inverted_wherever_it_is_asked(n: int, seed: int, data: st.DataObject) -> None:
    order = Permutation(n, key_of(seed, 0, "test"))
    places = np.array(data.draw(st.lists(st.integers(0, n - 1), unique=True, max_size=50)), np.int64)
    numbers = order.at(places)
    assert ((numbers >= 0) & (numbers < n)).all()
    assert (order.index_of(numbers) == places).all()


def test_keys_differ_in_everything_they_are_made_of() -> None:
    keys = [
        key_of(seed, epoch, what, number)
        for seed in (-1, 0, 1, 11)
        for epoch in (0, 1, 11)
        for what in ("samples", "full", "tail")
        for number in (0, 1, 10)
    ]
    assert all(one != other for one, other in pairwise(sorted(keys)))
