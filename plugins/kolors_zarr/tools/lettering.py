"""Text in pictures: only letters that the font has, in only as much room as there is."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from PIL import ImageFont

from kolors_kernel.errors import RecipeError

_NO_CHARACTER = "\uffff"
"""What Unicode promises never to use; a font draws its sign for a missing letter."""
_MORE = "..."
_WORDS = re.compile(r"\s+|[^\s\u2e80-\uffff]+|\S")
"""What a line is not broken within; it may be between any two letters of Chinese."""


class Lettering:
    """A font at a size in pixels: Pillow's own, of Latin letters without accents, or that of a file.

    Raises RecipeError for a file that is no font.
    """

    def __init__(self, size: int, *, font: Path | None) -> None:
        try:
            loaded = ImageFont.load_default(size) if font is None else ImageFont.truetype(font, size)
        except OSError as error:
            raise RecipeError(f"{font} cannot be used as a font: {error}") from error
        assert isinstance(loaded, ImageFont.FreeTypeFont)
        self.font = loaded
        self.line = sum(loaded.getmetrics())
        self._has = cache(self._draws)

    def width(self, text: str) -> int:
        """Return how wide a line is, in pixels."""
        return round(self.font.getlength(text))

    def has(self, text: str) -> bool:
        """Tell whether the font has every letter of a text."""
        return all(each.isspace() or self._has(each) for each in text)

    def readable(self, text: str) -> str:
        """Return a text on one line, with ? for the letters that the font lacks."""
        return "".join(" " if each.isspace() else each if self._has(each) else "?" for each in text)

    def ending(self, text: str, width: int) -> str:
        """Return the end of a text that fits into a width, dots before it if that is not all."""
        if self.width(text) <= width:
            return text
        while text and self.width(_MORE + text) > width:
            text = text[1:]
        return _MORE + text

    def wrapped(self, text: str, width: int, *, most: int) -> list[str]:
        """Return a text in at most so many lines of a width, the last with dots if more would follow."""
        lines, line = [], ""
        for word in _WORDS.findall(" ".join(text.split())):
            if self.width(line + word) > width and line.strip():
                lines.append(line.strip())
                line = ""
            line += word
        lines.append(line.strip())
        if len(lines) > most or any(self.width(each) > width for each in lines):
            lines = [self._beginning(each, width, cut=i == most - 1 < len(lines) - 1) for i, each in enumerate(lines)]
        return lines[:most]

    def _beginning(self, text: str, width: int, *, cut: bool) -> str:
        if not cut and self.width(text) <= width:
            return text
        while text and self.width(text + _MORE) > width:
            text = text[:-1]
        return text + _MORE

    def _draws(self, letter: str) -> bool:
        return self._glyph(letter) != self._glyph(_NO_CHARACTER)

    def _glyph(self, letter: str) -> tuple[tuple[int, int], bytes]:
        mask = self.font.getmask(letter)
        return mask.size, bytes(mask)
