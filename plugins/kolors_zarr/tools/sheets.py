"""Pictures put together from smaller ones, on white."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

INK, GREY, PALE, BLUE = "#1c1e21", "#6b7076", "#eceef1", "#3b6fb6"


def blank(width: int, height: int) -> Image.Image:
    """Return a white picture."""
    return Image.new("RGB", (width, height), "white")


def stacked(pictures: Sequence[Image.Image], *, gap: int) -> Image.Image:
    """Return pictures one below the other, so many pixels apart."""
    sheet = blank(max(each.width for each in pictures), sum(each.height + gap for each in pictures) - gap)
    top = 0
    for each in pictures:
        sheet.paste(each, (0, top))
        top += each.height + gap
    return sheet


def beside(pictures: Sequence[Image.Image], *, gap: int) -> Image.Image:
    """Return pictures one beside the other, so many pixels apart."""
    sheet = blank(sum(each.width + gap for each in pictures) - gap, max(each.height for each in pictures))
    left = 0
    for each in pictures:
        sheet.paste(each, (left, 0))
        left += each.width + gap
    return sheet


def framed(picture: Image.Image, *, margin: int) -> Image.Image:
    """Return a picture with a white margin."""
    sheet = blank(picture.width + 2 * margin, picture.height + 2 * margin)
    sheet.paste(picture, (margin, margin))
    return sheet
