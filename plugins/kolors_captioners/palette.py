"""A caption of what can be measured in a picture: its background and its main colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kolors_captioners.colours import COLOURS, Colour, lab, nearest, shares
from kolors_kernel.values import Language

SIDE = 64
"""Pictures are looked at with their longer side at most this many pixels."""
BORDER = 0.6
"""The share of the border that one colour must fill to be a background."""
SAME = 6.0
"""Colours nearer to the background than this in CIELAB belong to it; pale grey on white does not."""
WORTH_SAYING = 0.06
"""Colours with a smaller share are left out: they are mostly the blur between two others."""
MOST = 4
"""How many colours are said at most."""


@dataclass(frozen=True)
class Look:
    """What was measured: the colour of the background, if it is plain, and the shares of colours in the rest."""

    background: Colour | None
    colours: Mapping[Colour, float]


class PaletteCaptioner:
    """Describes pictures by their colours alone, so that nothing it says is invented (2.1.2)."""

    def caption(self, images: Sequence[Image.Image], language: Language) -> list[str]:
        """Return one sentence a picture, as "Mostly orange with a little black, on a white background."."""
        say = {"en": in_english, "zh": in_chinese}[language]
        return [say(look_at(image)) for image in images]


def look_at(image: Image.Image) -> Look:
    """Measure a picture of any mode; what is transparent counts as white."""
    small = image.convert("RGBA")
    white = Image.new("RGBA", small.size, "white")
    small = Image.alpha_composite(white, small).convert("RGB")
    scale = min(1.0, SIDE / max(small.size))
    small = small.resize(
        (max(1, round(small.width * scale)), max(1, round(small.height * scale))), Image.Resampling.BOX
    )
    pixels = np.asarray(small)
    names, places = nearest(pixels), lab(pixels)  # [h, w], [h, w, 3]
    colour, share = next(iter(shares(_border(names)).items()))
    if share < BORDER:
        return Look(None, shares(names))
    ground = np.median(_border(places)[_border(names) == COLOURS.index(colour)], axis=0)
    figure = names[~_reached_from_border(np.linalg.norm(places - ground, axis=-1) < SAME)]
    return Look(colour, shares(figure) if figure.size else {})


def _border(values: NDArray[Any]) -> NDArray[Any]:
    """Return what is on the border, [h, w, ...] -> [2 h + 2 w, ...]; corners twice."""
    return np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])


def _reached_from_border(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the part of `mask` [h, w] that touches the border through itself: white eyes are no background."""
    reached = np.zeros_like(mask)
    reached[[0, -1]], reached[:, [0, -1]] = mask[[0, -1]], mask[:, [0, -1]]
    while True:
        grown = reached.copy()
        grown[1:] |= reached[:-1]
        grown[:-1] |= reached[1:]
        grown[:, 1:] |= reached[:, :-1]
        grown[:, :-1] |= reached[:, 1:]
        grown &= mask
        if np.array_equal(grown, reached):
            return reached
        reached = grown


def in_english(look: Look) -> str:
    """Return the measurement as an English sentence."""
    background = f"on a {look.background.en} background" if look.background else "with no plain background"
    said = _worth_saying(look)
    if not said:
        return f"Plain {look.background.en}." if look.background else "Of many colours."
    (first, share), *others = said
    lead = f"{_lead(share, 'All ', 'Mostly ', '')}{first.en}"
    parts = [f"{'some' if share >= 0.15 else 'a little'} {colour.en}" for colour, share in others]
    listed = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
    sentence = f"{lead}{' with ' if parts else ''}{listed}, {background}."
    return sentence[0].upper() + sentence[1:]


def in_chinese(look: Look) -> str:
    """Return the measurement as a Chinese sentence."""
    background = f"{look.background.zh}背景" if look.background else "没有单色背景"
    said = _worth_saying(look)
    if not said:
        return f"纯{look.background.zh}。" if look.background else "颜色繁多。"
    (first, share), *others = said
    lead = _lead(share, "全部为{}", "以{}为主", "有{}").format(first.zh)
    parts = [f"{'一些' if share >= 0.15 else '少许'}{colour.zh}" for colour, share in others]
    listed = "和".join(["、".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
    return f"{lead}{'，带有' if parts else ''}{listed}，{background}。"


def _worth_saying(look: Look) -> list[tuple[Colour, float]]:
    return [(colour, share) for colour, share in look.colours.items() if share >= WORTH_SAYING][:MOST]


def _lead(share: float, all_of_it: str, most_of_it: str, part_of_it: str) -> str:
    if share >= 0.95:
        return all_of_it
    return most_of_it if share >= 0.5 else part_of_it
