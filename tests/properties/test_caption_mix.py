from __future__ import annotations

from collections import Counter
from itertools import pairwise
from math import ceil, floor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kolors_captioners.mix import CaptionMixer

from kolors_kernel.testing.strategies import sample_records
from kolors_kernel.values import NO_CAPTION, SampleRecord

ALL = {"zh_original": "a", "en_original": "b", "zh_synthetic": "c", "en_synthetic": "d"}
shares = st.one_of(st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]), st.floats(0, 1))


def record(id: str = "x", *keys: str) -> SampleRecord:
    return SampleRecord(id, (8, 8), {key: ALL[key] for key in keys or ALL})


def keys_of(mix: CaptionMixer, sample: SampleRecord, epochs: int, seed: int = 0) -> list[str]:
    return [mix.choose(sample, seed=seed, epoch=epoch) for epoch in range(epochs)]


@settings(max_examples=150, deadline=None)
@given(sample=sample_records(), seed=st.integers(-9, 2**40), epoch=st.integers(0, 10**6), share=shares)
def test_what_is_chosen_exists_and_is_a_pure_function(
    sample: SampleRecord, seed: int, epoch: int, share: float
) -> None:
    mixes = [CaptionMixer(synthetic=share, chinese=share, dropout=share / 2) for _ in range(2)]
    keys = {mix.choose(sample, seed=seed, epoch=epoch) for mix in mixes for _ in range(2)}
    assert len(keys) == 1
    assert keys <= {NO_CAPTION, *(key for key, text in sample.captions.items() if text)}


@settings(max_examples=150, deadline=None)
@given(
    synthetic=shares,
    chinese=shares,
    dropout=shares,
    seed=st.integers(0, 2**40),
    epochs=st.integers(1, 300),
    id=st.text(max_size=8),
)
def test_every_sample_keeps_every_share_to_within_one_epoch(
    synthetic: float, chinese: float, dropout: float, seed: int, epochs: int, id: str
) -> None:
    mix = CaptionMixer(synthetic=synthetic, chinese=chinese, dropout=dropout)
    found = Counter(keys_of(mix, record(id), epochs, seed))

    def is_share(part: int, share: float, whole: int) -> bool:
        return floor(share * whole - 1e-9) <= part <= ceil(share * whole + 1e-9)

    kept = epochs - found[NO_CAPTION]
    origins = {o: found[f"zh_{o}"] + found[f"en_{o}"] for o in ("synthetic", "original")}
    assert is_share(found[NO_CAPTION], dropout, epochs)
    assert is_share(origins["synthetic"], synthetic, kept)
    for origin, count in origins.items():
        assert is_share(found[f"zh_{origin}"], chinese, count)


def test_halves_alternate_and_the_two_choices_do_not_lock_into_step() -> None:
    mix = CaptionMixer(synthetic=0.5, chinese=0.5, dropout=0)
    for i in range(50):
        keys = keys_of(mix, record(f"id{i}"), 40)
        origins = [key.split("_")[1] for key in keys]
        assert all(one != other for one, other in pairwise(origins))
        assert all(set(keys[start : start + 4]) == set(ALL) for start in range(0, 40, 4))


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_each_epoch_has_the_shares_over_its_samples(epoch: int) -> None:
    mix, count = CaptionMixer(synthetic=0.5, chinese=0.5, dropout=0.1), 8000
    found = Counter(mix.choose(record(f"id{i}"), seed=3, epoch=epoch) for i in range(count))
    assert found[NO_CAPTION] / count == pytest.approx(0.1, abs=0.015)  # four standard deviations of a coin
    for key in ALL:
        assert found[key] / count == pytest.approx(0.225, abs=0.02)


def test_choices_of_different_seeds_are_independent() -> None:
    mix = CaptionMixer(synthetic=0.5, chinese=0.5, dropout=0)
    first, second = ([mix.choose(record(f"id{i}"), seed=seed, epoch=0) for i in range(4000)] for seed in (0, 1))
    assert sum(map(str.__eq__, first, second)) / 4000 == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        (["zh_original"], {"zh_original": 1.0}),
        (["zh_original", "en_original"], {"zh_original": 0.5, "en_original": 0.5}),
        (["zh_original", "en_synthetic"], {"zh_original": 0.5, "en_synthetic": 0.5}),
        (
            ["en_original", "zh_synthetic", "en_synthetic"],
            {"en_original": 0.5, "zh_synthetic": 0.25, "en_synthetic": 0.25},
        ),
    ],
)
def test_the_turns_of_what_is_missing_go_to_what_is_there(there: list[str], wanted: dict[str, float]) -> None:
    found = Counter(keys_of(CaptionMixer(synthetic=0.5, chinese=0.5, dropout=0), record("x", *there), 400))
    assert {key: count / 400 for key, count in found.items()} == wanted


def test_a_whole_share_always_wins_where_it_exists() -> None:
    mix = CaptionMixer(synthetic=1, chinese=0, dropout=0)
    assert set(keys_of(mix, record(), 30)) == {"en_synthetic"}
    assert set(keys_of(mix, record("x", "zh_original"), 30)) == {"zh_original"}
