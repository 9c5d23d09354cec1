from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kolors_curation.config import Tags
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
