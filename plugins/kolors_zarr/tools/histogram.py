"""The histogram of a store: its samples by bucket, by aspect ratio, by caption and by level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log2
from pathlib import Path

from PIL import Image, ImageDraw

from kolors_zarr.tools.census import ASPECTS, Census
from kolors_zarr.tools.lettering import Lettering
from kolors_zarr.tools.sheets import BLUE, GREY, INK, PALE, beside, blank, framed, stacked
from kolors_zarr.tools.telling import number_of

_WIDTH = 560
"""Of a column of panels, in pixels."""
_ROW, _BAR = 22, 14
_LABEL, _COUNT = 130, 130
"""Pixels for what is written before and after a bar."""
_MOST_ROWS = 40
_PLOT = 190
_TICKS = ((1, 4), (1, 3), (1, 2), (2, 3), (1, 1), (3, 2), (2, 1), (3, 1), (4, 1))
"""Width to height, as they are named below the axis."""
LEVEL = "level"


def draw_panels(census: Census, font: Path | None) -> Image.Image:
    """Return the histogram as a picture."""
    brush = _Brush(font)
    captions = {**census.captions, "none at all": census.without_caption}
    panels = [
        brush.bars("samples by bucket, height x width", census.buckets, of=census.samples, shapes=True),
        brush.aspects("samples by aspect ratio of the original, width : height", census.aspects),
        brush.bars("samples with a caption", captions, of=census.samples),
    ]
    if LEVEL in census.tags:
        level = census.tags[LEVEL]
        counts = {value: level.values[value] for value in sorted(level.values)}
        rest = {"other": level.others, "none": level.lacking}
        counts |= {name: count for name, count in rest.items() if count}
        panels.append(brush.bars("samples by level", counts, of=census.samples))
    sheet = beside(_columns(panels), gap=48)
    return framed(stacked([brush.title(census, sheet.width), sheet], gap=28), margin=28)


def _columns(panels: Sequence[Image.Image]) -> list[Image.Image]:
    """Return panels in two columns, each where there is more room left."""
    columns: list[list[Image.Image]] = [[], []]
    for panel in panels:
        min(columns, key=lambda column: sum(each.height for each in column)).append(panel)
    return [stacked(column, gap=36) for column in columns]


class _Brush:
    """Draws panels in the fonts of one file."""

    def __init__(self, font: Path | None) -> None:
        self.large, self.plain = Lettering(22, font=font), Lettering(14, font=font)

    def title(self, census: Census, width: int) -> Image.Image:
        """Return the head of the sheet: which store, and how many samples."""
        sheet = blank(width, 60)
        draw = ImageDraw.Draw(sheet)
        name = self.large.ending(self.large.readable(census.store), width)
        draw.text((0, 0), name, INK, self.large.font)
        told = f"{number_of(census.samples, 'sample')} in {number_of(len(census.buckets), 'bucket')}"
        if census.refused:
            told += f"; {number_of(census.refused, 'input')} refused"
        draw.text((0, 36), told, GREY, self.plain.font)
        return sheet

    def bars(self, title: str, counts: Mapping[str, int], *, of: int, shapes: bool = False) -> Image.Image:
        """Return a bar for each count; with `shapes`, names such as 832x1216 get an outline of that aspect."""
        shown = dict(list(counts.items())[:_MOST_ROWS])
        if len(shown) < len(counts):
            shown[f"{len(counts) - len(shown)} more"] = sum(counts.values()) - sum(shown.values())
        sheet = blank(_WIDTH, 34 + _ROW * len(shown))
        draw = ImageDraw.Draw(sheet)
        draw.text((0, 0), title, INK, self.plain.font)
        room, most = _WIDTH - _LABEL - _COUNT, max([1, *shown.values()])
        for row, (name, count) in enumerate(shown.items()):
            top = 34 + _ROW * row
            indent = 24 if shapes else 0
            if shapes:
                _outline(draw, name, middle=(9, top + _BAR // 2 + 1))
            label = self.plain.ending(self.plain.readable(name), _LABEL - indent - 8)
            draw.text((indent, top), label, INK, self.plain.font)
            draw.rectangle((_LABEL, top + 1, _LABEL + room, top + _BAR), PALE)
            if count:
                draw.rectangle((_LABEL, top + 1, _LABEL + max(1, round(room * count / most)), top + _BAR), BLUE)
            told, share = f"{count:,}", f"{count / of:.1%}"
            draw.text((_WIDTH - 52, top), told, INK, self.plain.font, anchor="ra")
            draw.text((_WIDTH, top), share, GREY, self.plain.font, anchor="ra")
        return sheet

    def aspects(self, title: str, counts: Sequence[int]) -> Image.Image:
        """Return a histogram over the logarithm of the aspect ratio."""
        sheet = blank(_WIDTH, 34 + _PLOT + 28)
        draw = ImageDraw.Draw(sheet)
        draw.text((0, 0), title, INK, self.plain.font)
        floor, step, most = 34 + _PLOT, _WIDTH / len(counts), max([1, *counts])
        first, last = log2(ASPECTS[0]), log2(ASPECTS[-1])
        for wide, tall in _TICKS:
            x = round(_WIDTH * (log2(wide / tall) - first) / (last - first))
            draw.line((x, 34, x, floor + 4), PALE)
            draw.text((x, floor + 8), f"{wide}:{tall}", GREY, self.plain.font, anchor="ma")
        for place, count in enumerate(counts):
            if count:
                height = max(1, round((_PLOT - 20) * count / most))
                draw.rectangle((round(step * place) + 1, floor - height, round(step * (place + 1)) - 1, floor), BLUE)
        peak = max(range(len(counts)), key=lambda place: counts[place])
        middle = min(max(step * (peak + 0.5), 30), _WIDTH - 30)
        draw.text((middle, floor - _PLOT + 16), f"{counts[peak]:,}", INK, self.plain.font, anchor="mb")
        draw.line((0, floor, _WIDTH, floor), GREY)
        return sheet


def _outline(draw: ImageDraw.ImageDraw, name: str, *, middle: tuple[int, int]) -> None:
    """Draw the shape of a bucket called HEIGHTxWIDTH, a picture of some 120 pixels; nothing for other names."""
    tall, _, wide = name.partition("x")
    if not (tall.isdigit() and wide.isdigit()):
        return
    root = (int(tall) / int(wide)) ** 0.5
    height, width = min(9.0, 5.5 * root), min(9.0, 5.5 / root)
    x, y = middle
    draw.rectangle((x - width, y - height, x + width, y + height), outline=GREY)
