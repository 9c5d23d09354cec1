from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kolors_curation.config import Level, Tags
from pydantic import ValidationError

from kolors_kernel.component import BuildContext
from kolors_kernel.values import SampleRecord

TAGS = st.dictionaries(st.sampled_from("abc"), st.sampled_from("xyz"), max_size=3)
VALUES = st.dictionaries(st.sampled_from("abc"), st.lists(st.sampled_from("xyz"), min_size=1), max_size=2)


def reason(tags: dict[str, str], **settings: dict[str, list[str]]) -> str | None:
    return Tags(**settings).build(BuildContext()).reason_to_drop(SampleRecord("id", (8, 8), {}, tags))


def test_reasons_say_tag_and_values() -> None:
    where = {"style": ["noto", "flat"]}
    assert reason({"style": "noto"}, where=where) is None
    assert reason({"style": "3d"}, where=where) == "its tag 'style' is '3d', not flat or noto"
    assert reason({}, where=where) == "it has no tag 'style'"
    assert reason({"split": "test"}, without={"split": ["test"]}) == "its tag 'split' is 'test'"
    assert reason({}, without={"split": ["test"]}) is None


@given(tags=TAGS, where=VALUES, without=VALUES)
def test_a_sample_is_kept_when_it_is_in_all_of_where_and_in_none_of_without(
    tags: dict[str, str], where: dict[str, list[str]], without: dict[str, list[str]]
) -> None:
    wanted = all(tags.get(tag) in values for tag, values in where.items())
    unwanted = any(tags.get(tag) in values for tag, values in without.items())
    assert (reason(tags, where=where, without=without) is None) == (wanted and not unwanted)


def test_a_tag_without_values_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"where\.split"):
        Tags(where={"split": []})


def level_reason(tags: dict[str, str], **settings: int) -> str | None:
    return Level(**settings).build(BuildContext()).reason_to_drop(SampleRecord("id", (8, 8), {}, tags))


def test_levels_are_numbers_and_the_best_are_kept() -> None:
    assert level_reason({"level": "5"}) is None
    assert level_reason({"level": "4"}) == "its level is 4, below 5"
    assert level_reason({"level": "4"}, at_least=3) is None
    assert level_reason({"level": "10"}, at_least=5) is None
    assert level_reason({"style": "flat"}) == "it has no tag 'level'"
    for wrong in ("", "good", "4.5", "-5", "\u0665"):
        assert level_reason({"level": wrong}) == f"its tag 'level' is '{wrong}', which is no level"


@pytest.mark.parametrize("wrong", [0, 6])
def test_a_level_that_is_none_of_the_five_is_refused(wrong: int) -> None:
    with pytest.raises(ValidationError, match="at_least"):
        Level(at_least=wrong)


@given(tags=TAGS, others=st.dictionaries(st.sampled_from("def"), st.sampled_from("xyz")), where=VALUES, without=VALUES)
def test_only_the_tags_it_names_decide(
    tags: dict[str, str], others: dict[str, str], where: dict[str, list[str]], without: dict[str, list[str]]
) -> None:
    chosen = Tags(where=where, without=without).build(BuildContext())
    looked_at = {tag: value for tag, value in tags.items() if tag in chosen.reads}
    found = chosen.reason_to_drop(SampleRecord("id", (8, 8), {}, {**tags, **others}))
    assert found == chosen.reason_to_drop(SampleRecord("", (0, 0), {}, looked_at))
