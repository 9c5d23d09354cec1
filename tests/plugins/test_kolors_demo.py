from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kolors_demo.config import EmojiHits, EmojiPrompts
from kolors_demo.gallery import Gallery, read_gallery, read_records
from kolors_demo.hits import NearestPictureHits
from kolors_demo.prompts import EmojiPromptList
from torch import Tensor

from kolors_kernel import BuildContext
from kolors_kernel.errors import DataError, RecipeError
from kolors_kernel.values import Batch, Part, PromptCase, SampleRecord

GROUPS = ["food-drink", "animals-nature"]
STYLES = ("twemoji", "noto", "fluent_3d")


@pytest.fixture(scope="module")
def cases() -> list[PromptCase]:
    return EmojiPrompts(groups=GROUPS, per_part=48).build(BuildContext()).cases()


@pytest.fixture(scope="module")
def gallery() -> Gallery:
    config = EmojiHits(groups=GROUPS)
    return read_gallery(config.data.build(BuildContext()), config.groups)


@pytest.fixture
def metric(gallery: Gallery) -> NearestPictureHits:
    return NearestPictureHits(gallery, device="cpu")


def wanted(gallery: Gallery, cases: Sequence[PromptCase]) -> Tensor:
    place = {(r.tags["concept"], r.tags["style"]): i for i, r in enumerate(gallery.records)}
    return torch.stack([gallery.pictures[place[case.target["concept"], case.target["style"]]] for case in cases])


def shown(gallery: Gallery, cases: Sequence[PromptCase]) -> Tensor:
    """Return what a perfect model draws: the picture that the prompt describes."""
    tags = {"flat sticker style": "twemoji", "shaded cartoon style": "noto", "glossy 3D style": "fluent_3d"}
    tags |= {"扁平贴纸风格": "twemoji", "渐变卡通风格": "noto", "光泽立体风格": "fluent_3d"}
    place = {(r.tags[f"name_{k}"], r.tags["style"]): i for i, r in enumerate(gallery.records) for k in ("en", "zh")}
    asked = [case.prompt.replace("，", ", ").rsplit(", ", 1) for case in cases]
    return torch.stack([gallery.pictures[place[name, tags[style]]] for name, style in asked])


def record(concept: str, style: str, split: str = "train") -> SampleRecord:
    tags = {"concept": concept, "style": style, "split": split, "group": "g", "name_en": concept, "name_zh": concept}
    return SampleRecord(f"{concept}/{style}", (8, 8), {}, tags)


class Source:
    """A data source of two batches, without a list of records."""

    def __init__(self, records: Sequence[SampleRecord], images: Tensor | None = None) -> None:
        self.all, self.images = records, images

    def batches(self, *, seed: int, epoch: int, rank: int = 0, world: int = 1, skip: int = 0) -> Iterator[Batch]:
        raise AssertionError("the order of an epoch is not wanted")

    def parts(self, most: int) -> list[Part]:
        half = (len(self.all) + 1) // 2
        return [Part("first", (8, 8), range(half)), Part("second", (8, 8), range(half, len(self.all)))]

    def read(self, part: Part) -> Iterator[Batch]:
        rows, n = list(part.rows), len(part.rows)
        images = None if self.images is None else self.images[rows]
        yield Batch([self.all[row] for row in rows], torch.zeros(n, 6), torch.ones(n), images=images)


def test_both_languages_ask_for_the_same_pictures_in_every_part(cases: list[PromptCase]) -> None:
    count = {part: sum(case.part == part for case in cases) for part in ("train", "held_out", "control")}
    assert count["train"] == count["control"] == 96
    assert 30 < count["held_out"] <= 96
    assert sum(count.values()) == len(cases)
    for english, chinese in zip(cases[::2], cases[1::2], strict=True):
        assert (english.language, chinese.language) == ("en", "zh")
        assert (english.part, english.target) == (chinese.part, chinese.target)
        assert english.prompt.isascii() or "style" in english.prompt
        assert chinese.prompt.endswith("风格")


def test_prompts_are_the_same_from_another_build_and_others_from_another_seed(cases: list[PromptCase]) -> None:
    again = EmojiPrompts(groups=GROUPS, per_part=48).build(BuildContext()).cases()
    other = EmojiPrompts(groups=GROUPS, per_part=48, seed=1).build(BuildContext()).cases()
    assert again == cases
    assert other != cases


def test_fewer_prompts_are_some_of_more(cases: list[PromptCase]) -> None:
    few = EmojiPrompts(groups=GROUPS, per_part=8).build(BuildContext()).cases()
    assert [case for case in few if case.part == "train"] == cases[:16]


def test_prompts_keep_to_their_group_and_split() -> None:
    config = EmojiPrompts(groups=["food-drink"], per_part=500)
    records = read_records(config.data.build(BuildContext()), config.groups)
    split = {(r.tags["concept"], r.tags["style"]): r.tags["split"] for r in records}
    listed = EmojiPromptList(records, per_part=500, seed=0).cases()
    asked = {
        part: {(c.target["concept"], c.target["style"]) for c in listed if c.part == part} for part in split.values()
    }
    assert asked == {part: {pair for pair, of in split.items() if of == part} for part in ("train", "held_out")}
    assert len(asked["train"]) + len(asked["held_out"]) == 128 * 3


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.sets(st.sampled_from(STYLES), min_size=1), min_size=3))
def test_the_control_is_the_trained_prompts_with_another_concept_each(drawn: dict[str, set[str]]) -> None:
    records = [record(concept, style) for concept, styles in sorted(drawn.items()) for style in sorted(styles)]
    largest = max(len(styles) for styles in drawn.values())
    listed = EmojiPromptList(records, per_part=100, seed=3)
    if 2 * largest > len(records):
        with pytest.raises(RecipeError, match="choose more groups"):
            listed.cases()
        return
    parts = {part: [case for case in listed.cases() if case.part == part] for part in ("train", "control")}
    assert [case.prompt for case in parts["control"]] == [case.prompt for case in parts["train"]]
    pairs = list(zip(parts["train"], parts["control"], strict=True))
    assert all(ours.target["concept"] != theirs.target["concept"] for ours, theirs in pairs)
    targets = [sorted(tuple(case.target.values()) for case in part) for part in parts.values()]
    assert targets[0] == targets[1]


def test_the_pictures_asked_for_are_hits_and_the_control_is_near_chance(
    metric: NearestPictureHits, gallery: Gallery, cases: list[PromptCase]
) -> None:
    metric.update(shown(gallery, cases), cases)
    report = metric.compute()
    for part in ("train", "held_out"):
        for language in ("en", "zh"):
            assert (report[part][language]["concept"], report[part][language]["style"]) == (1.0, 1.0)
    for language in ("en", "zh"):
        assert report["control"][language]["concept"] <= report["chance"][language]["concept"] + 0.03
        assert abs(report["control"][language]["style"] - 1 / 3) < 0.25


def test_the_report_has_rates_by_part_and_language_and_chance(
    metric: NearestPictureHits, gallery: Gallery, cases: list[PromptCase]
) -> None:
    for start in range(0, len(cases), 32):
        metric.update(wanted(gallery, cases[start : start + 32]), cases[start : start + 32])
    report = metric.compute()
    assert list(report) == ["train", "held_out", "control", "chance"]
    for part, languages in report.items():
        assert set(languages) == {"en", "zh"}
        for rates in languages.values():
            assert set(rates) == {"concept", "style", "n"}
            assert rates["n"] == sum(case.part == part or part == "chance" for case in cases) / 2
    assert report["chance"]["zh"]["concept"] == pytest.approx(1 / 285)  # 3 of 855 pictures
    assert report["chance"]["zh"]["style"] == pytest.approx(1 / 3)
    assert json.loads(json.dumps(report)) == report


def test_noise_and_blank_pictures_score_about_chance(metric: NearestPictureHits, cases: list[PromptCase]) -> None:
    noise = torch.rand(len(cases), 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    metric.update(noise, cases)
    metric.update(torch.ones(len(cases), 3, 64, 64), cases)
    for part in ("train", "held_out", "control"):
        for language in ("en", "zh"):
            assert metric.compute()[part][language]["concept"] <= 0.03
            assert metric.compute()[part][language]["style"] <= 0.6


def test_another_style_of_the_concept_is_a_concept_hit_only(
    metric: NearestPictureHits, gallery: Gallery, cases: list[PromptCase]
) -> None:
    case = cases[0]
    other = next(style for style in STYLES if style != case.target["style"])
    asked = PromptCase(case.prompt, case.language, "train", {**case.target, "style": other})
    metric.update(wanted(gallery, [case]), [asked])
    assert metric.compute()["train"]["en"] == {"concept": 1.0, "style": 0.0, "n": 1}


@pytest.mark.parametrize("size", [(32, 32), (48, 64), (96, 96)])
def test_pictures_of_another_size_are_still_found(
    metric: NearestPictureHits, gallery: Gallery, cases: list[PromptCase], size: tuple[int, int]
) -> None:
    some = cases[:40:2]
    resized = torch.nn.functional.interpolate(wanted(gallery, some), size=size, mode="bicubic", antialias=True)
    metric.update(resized.clamp(-1, 1), some)
    assert metric.compute()["train"]["en"]["concept"] >= 0.95


def test_a_slightly_spoilt_picture_is_still_found(
    metric: NearestPictureHits, gallery: Gallery, cases: list[PromptCase]
) -> None:
    noise = torch.randn(20, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    metric.update(wanted(gallery, cases[:40:2]) + 0.2 * noise, cases[:40:2])
    assert metric.compute()["train"]["en"]["concept"] == 1.0


def test_a_drawing_of_several_concepts_is_a_hit_for_each() -> None:
    pictures = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    pictures[1] = pictures[0]
    metric = NearestPictureHits(Gallery(pictures, [record(c, "noto") for c in "abc"]), device="cpu")
    for concept in "abc":
        metric.update(pictures[:1], [PromptCase("", "en", concept, {"concept": concept, "style": "noto"})])
    assert {part: metric.compute()[part]["en"]["concept"] for part in "abc"} == {"a": 1.0, "b": 1.0, "c": 0.0}


def test_a_picture_that_is_not_finite_misses(metric: NearestPictureHits, cases: list[PromptCase]) -> None:
    metric.update(torch.full((1, 3, 64, 64), torch.nan), cases[:1])
    assert metric.compute()["train"]["en"] == {"concept": 0.0, "style": 0.0, "n": 1}


def test_nothing_taken_in_is_an_empty_report(metric: NearestPictureHits) -> None:
    assert metric.compute() == {}


def test_unknown_targets_and_uneven_batches_are_refused_whole(
    metric: NearestPictureHits, gallery: Gallery, cases: list[PromptCase]
) -> None:
    stranger = PromptCase("a cat", "en", "train", {"concept": "CAT", "style": "noto"})
    with pytest.raises(ValueError, match="the prompt 'a cat' has the target concept 'CAT', which none of 855"):
        metric.update(wanted(gallery, [cases[0], cases[0]]), [cases[0], stranger])
    with pytest.raises(ValueError, match="2 pictures came with 1 cases"):
        metric.update(torch.zeros(2, 3, 64, 64), cases[:1])
    assert metric.compute() == {}


def test_an_unknown_group_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(RecipeError, match="in the group 'food'; known: activities, animals-nature"):
        EmojiPrompts(groups=["food"]).build(BuildContext())
    with pytest.raises(RecipeError, match="no picture is left"):
        EmojiPrompts(groups=[]).build(BuildContext())


def test_any_source_that_is_read_in_parts_will_do() -> None:
    records = [record(concept, style) for concept in "abc" for style in STYLES]
    images = torch.randint(256, (9, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    gallery = read_gallery(Source(records, images), ["g"])
    assert torch.equal(gallery.pictures, images.float() / 127.5 - 1)
    assert [each.id for each in gallery.records] == [each.id for each in read_records(Source(records), None)]


def test_data_without_pictures_or_tags_or_order_is_refused() -> None:
    with pytest.raises(DataError, match="set its pictures: images"):
        read_gallery(Source([record("a", "noto")]), None)
    with pytest.raises(DataError, match="sample 'x' has no tag concept, style"):
        read_records(Source([SampleRecord("x", (8, 8), {})]), None)

    class Endless:
        batches = Source.batches

    with pytest.raises(RecipeError, match="Endless cannot be read in parts"):
        read_records(Endless(), None)  # type: ignore[arg-type]


def test_the_embedded_store_is_the_default_and_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert EmojiPrompts.model_validate({"type": "emoji_prompts", "per_part": 2}).build(BuildContext()).cases()
