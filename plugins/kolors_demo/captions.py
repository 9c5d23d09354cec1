"""How the demo's pictures are named: three drawing styles, and captions of a name and a style."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kolors_kernel.values import Language


@dataclass(frozen=True)
class Style:
    """One set of drawings: the words that captions call its style by, and the licence of the art."""

    words: Mapping[Language, str]
    licence: str


STYLES: Mapping[str, Style] = {
    "twemoji": Style({"en": "flat sticker style", "zh": "扁平贴纸风格"}, "CC-BY-4.0"),
    "noto": Style({"en": "shaded cartoon style", "zh": "渐变卡通风格"}, "Apache-2.0"),
    "fluent_3d": Style({"en": "glossy 3D style", "zh": "光泽立体风格"}, "MIT"),
}
"""The styles by the name that the tag `style` has."""

COMMA: Mapping[Language, str] = {"en": ", ", "zh": "，"}


def caption(name: str, style: str, language: Language) -> str:
    """Return the caption of a picture: the concept's name and the style's words, as "red apple, glossy 3D style"."""
    return COMMA[language].join((name, STYLES[style].words[language]))
