from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kolors_zarr.buckets.assign import Bucketing, nearest
from kolors_zarr.buckets_config import BucketsConfig, NovelAIBuckets, OwnBuckets, SDXLBuckets, SquareBuckets
from pydantic import ValidationError

from kolors_kernel.component import BuildContext

ALL = [SquareBuckets, NovelAIBuckets, SDXLBuckets, OwnBuckets]
MEGAPIXEL = NovelAIBuckets(area=1024 * 1024, shortest_side=512, longest_side=2048)


def reasons(config: BucketsConfig, *pictures: tuple[int, int]) -> list[str]:
    bucketing = config.build(BuildContext())
    found = bucketing.assign(*zip(*pictures, strict=True))
    codes = zip(found.reasons.tolist(), pictures, strict=True)
    return [bucketing.sentence(code, picture) if code else "" for code, picture in codes]


def test_the_rule_gives_the_counts_that_were_published() -> None:
    # From running the code NovelAI published (repository novelai-aspect-ratio-bucketing) with these settings.
    assert len(NovelAIBuckets().sizes()) == 19
    assert len(MEGAPIXEL.sizes()) == 33
    assert (512, 512) in NovelAIBuckets().sizes()
    assert (256, 1024) in NovelAIBuckets().sizes()


def test_the_table_of_sdxl_is_as_its_appendix_prints_it() -> None:
    sizes = SDXLBuckets().sizes()
    areas = [height * width / 1024**2 for height, width in sizes]
    assert len(sizes) == 40
    assert (round(min(areas), 3), max(areas)) == (0.902, 1.0)
    assert all(height % 64 == width % 64 == 0 for height, width in sizes)
    assert [(h, w) for h, w in sizes if (w, h) not in sizes] == [(704, 1344)]
    # Seven of them the rule does not know, and all that it knows are there.
    beyond = {(704, 1344), (832, 1152), (896, 1088), (960, 1024), (1152, 832), (1088, 896), (1024, 960)}
    assert set(sizes) == set(MEGAPIXEL.sizes()) | beyond
    assert not beyond & set(MEGAPIXEL.sizes())


@pytest.mark.parametrize("kind", ALL)
def test_sizes_are_sorted_and_distinct(kind: type[BucketsConfig]) -> None:
    for config in (kind.tiny(), *([kind()] if kind is not OwnBuckets else [])):  # type: ignore[call-arg]
        assert config.sizes() == tuple(sorted(set(config.sizes())))


def test_own_sizes_are_taken_as_given() -> None:
    config = OwnBuckets(table=[(768, 512), (512, 768)])
    assert config.sizes() == ((512, 768), (768, 512))
    assert OwnBuckets.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"type": "sizes", "table": []}, "at least 1"),
        ({"type": "sizes", "table": [[0, 8]]}, "greater than 0"),
        ({"type": "sizes", "table": [[8, 8], [8, 8]]}, "8 x 8, 8 x 8 repeat an aspect"),
        ({"type": "sizes", "table": [[8, 12], [8, 8], [16, 24]]}, "8 x 12, 16 x 24 repeat an aspect"),
        ({"type": "novelai", "shortest_side": 100}, "shortest_side 100 must be a multiple of step 64"),
        ({"type": "novelai", "base": 700}, "base 700 must be a multiple"),
        ({"type": "novelai", "area": 1000}, "a square of shortest_side 256 must fit the area of 1000"),
        ({"type": "novelai", "base": 640}, "a square of base 640 must fit the area of 393216"),
        ({"type": "novelai", "longest_side": 448}, "base 512 must lie between 256 and 448"),
        ({"type": "square", "max_loss": 1.5}, "less than or equal to 1"),
    ],
)
def test_sizes_that_cannot_be_meant_are_refused(settings: dict[str, Any], message: str) -> None:
    (cls,) = (cls for cls in ALL if cls.model_fields["type"].default == settings["type"])
    with pytest.raises(ValidationError, match=message):
        cls.model_validate(settings)


def test_a_tie_goes_to_the_first_of_the_table_whichever_is_wider() -> None:
    assert nearest([10], [10], sizes=((4, 8), (8, 4))).tolist() == [0]
    assert nearest([10], [20], sizes=((4, 4), (4, 16))).tolist() == [0]
    assert nearest([10, 1, 9999], [10, 9999, 1], sizes=((7, 5),)).tolist() == [0, 0, 0]


def test_a_picture_of_a_buckets_shape_goes_there_at_any_size() -> None:
    for times in (1, 3, 0.25):
        sides = np.array(SDXLBuckets().sizes()) * times
        assert nearest(sides[:, 0], sides[:, 1], sizes=SDXLBuckets().sizes()).tolist() == list(range(40))


def test_what_a_limit_refuses_is_told_with_the_limit_and_the_size() -> None:
    config = SquareBuckets(side=64, min_side=32, max_loss=0.5)
    small, long, fine, empty = reasons(config, (31, 900), (100, 201), (100, 200), (0, 50))
    assert small == "it is 31 x 900 pixels, and pictures with a side below 32 are refused (min_side)"
    assert long == "it is 100 x 201 pixels, and its bucket would cut away more than 50.0% of it (max_loss)"
    assert fine == ""
    assert empty.startswith("it is 0 x 50 pixels")


def test_without_upscaling_small_pictures_keep_their_own_size() -> None:
    config = NovelAIBuckets(no_upscale=True)
    bucketing = config.build(BuildContext())
    found = bucketing.assign([500, 400, 260, 255, 2000], [500, 1100, 1000, 300, 2000])
    assert found.sizes.tolist() == [[448, 448], [384, 1024], [256, 960], [0, 0], [512, 512]]
    assert reasons(config, (255, 300)) == [
        "it is 255 x 300 pixels, too small for its bucket, and cut down to multiples of 64 a side would be below 256 "
        "(no_upscale)"
    ]


def test_nothing_to_assign_is_nothing_assigned() -> None:
    found = Bucketing(((8, 8),), no_upscale=True).assign([], [])
    assert found.sizes.shape == (0, 2)
    assert found.reasons.shape == (0,)
