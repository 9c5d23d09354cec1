from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kolors_captioners.colours import COLOURS, lab, nearest, shares
from kolors_captioners.config import Mix, Palette
from kolors_captioners.palette import look_at
from PIL import Image, ImageDraw
from pydantic import ValidationError

from kolors_kernel.component import BuildContext
from kolors_kernel.values import Language


def named(colour: str) -> str:
    pixel = np.array([[Image.new("RGB", (1, 1), colour).getpixel((0, 0))]], np.uint8)
    return COLOURS[int(nearest(pixel)[0, 0])].en


def disc(fill: str, ground: str | tuple[int, ...] = "white", mode: str = "RGB", side: int = 64) -> Image.Image:
    image = Image.new(mode, (side, side), ground)
    ImageDraw.Draw(image).ellipse((side // 8, side // 8, side * 7 // 8, side * 7 // 8), fill=fill)
    return image


def caption(image: Image.Image, language: Language) -> str:
    (text,) = Palette().build(BuildContext()).caption([image], language)
    return text


@pytest.mark.parametrize(
    ("srgb", "wanted"),  # published values under D65, as of Lindbloom's calculator
    [
        ((255, 255, 255), (100.0, 0.0, 0.0)),
        ((0, 0, 0), (0.0, 0.0, 0.0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 255, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
        ((119, 119, 119), (50.03, 0.0, 0.0)),
    ],
)
def test_lab_has_the_published_values(srgb: tuple[int, int, int], wanted: tuple[float, float, float]) -> None:
    assert lab(np.array(srgb, np.uint8)) == pytest.approx(wanted, abs=0.02)


@pytest.mark.parametrize(
    ("colour", "name"),
    [
        ("black", "black"), ("gray", "grey"), ("white", "white"), ("red", "red"), ("orange", "orange"),
        ("yellow", "yellow"), ("green", "green"), ("blue", "blue"), ("navy", "dark blue"), ("purple", "purple"),
        ("magenta", "magenta"), ("pink", "pink"), ("teal", "teal"), ("maroon", "dark red"), ("olive", "olive"),
        ("saddlebrown", "brown"), ("skyblue", "light blue"), ("beige", "cream"), ("darkgreen", "dark green"),
    ],
)  # fmt: skip
def test_colours_have_the_names_people_give_them(colour: str, name: str) -> None:
    assert named(colour) == name


def test_names_are_distinct_in_both_languages_and_every_sample_has_its_own() -> None:
    assert len({colour.en for colour in COLOURS}) == len({colour.zh for colour in COLOURS}) == len(COLOURS)
    for colour in COLOURS:
        assert {named(f"#{sample}") for sample in colour.samples} == {colour.en}


@given(st.lists(st.integers(0, len(COLOURS) - 1), min_size=1, max_size=40))
def test_shares_add_up_and_fall(names: list[int]) -> None:
    found = list(shares(np.array(names, np.intp)).values())
    assert sum(found) == pytest.approx(1)
    assert found == sorted(found, reverse=True)


def test_a_disc_is_its_colour_on_its_background() -> None:
    assert caption(disc("#ffcc4d"), "en") == "All yellow, on a white background."
    assert caption(disc("#ffcc4d"), "zh") == "全部为黄色，白色背景。"
    assert caption(disc("red", "navy", side=512), "en") == "All red, on a dark blue background."


def test_the_parts_are_said_by_their_shares() -> None:
    image = disc("blue")
    ImageDraw.Draw(image).rectangle((26, 26, 38, 38), fill="yellow")  # 169 of some 1,800 pixels
    assert caption(image, "en") == "Mostly blue with a little yellow, on a white background."
    assert caption(image, "zh") == "以蓝色为主，带有少许黄色，白色背景。"


def test_two_halves_have_no_background() -> None:
    image = Image.new("RGB", (40, 40), "red")
    image.paste("blue", (0, 0, 20, 40))
    assert set(look_at(image).colours.values()) == {0.5}
    assert caption(image, "en") == "Mostly red with some blue, with no plain background."
    assert caption(image, "zh") == "以红色为主，带有一些蓝色，没有单色背景。"


def test_a_plain_picture_is_said_to_be_plain() -> None:
    assert caption(Image.new("RGB", (48, 32), "red"), "en") == "Plain red."
    assert caption(Image.new("L", (1, 1), 0), "zh") == "纯黑色。"


def test_white_inside_the_figure_is_no_background() -> None:
    image = disc("black")
    ImageDraw.Draw(image).rectangle((24, 24, 40, 40), fill="white")
    assert [colour.en for colour in look_at(image).colours][:2] == ["black", "white"]


def test_a_pale_figure_is_told_from_white() -> None:
    look = look_at(disc("#e1e8ed"))
    assert look.background is not None and look.background.en == "white"
    assert look.colours


def test_transparent_counts_as_white() -> None:
    clear = disc("green", (0, 0, 0, 0), "RGBA")
    assert caption(clear, "en") == caption(disc("green"), "en")


@pytest.mark.parametrize("setting", ["synthetic", "chinese", "dropout"])
def test_a_share_outside_0_to_1_is_refused(setting: str) -> None:
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValidationError, match=setting):
            Mix.model_validate({setting: wrong})


def test_the_papers_mix_is_the_default() -> None:
    assert (Mix().synthetic, Mix().chinese, Mix().dropout) == (0.5, 0.5, 0.1)
