"""Names of colours, in Chinese and English, by the nearest sample in CIELAB."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kolors_kernel.values import Language

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Colour:
    """A colour's names and the sRGB samples it is recognised by."""

    en: str
    zh: str
    samples: tuple[str, ...]

    def name(self, language: Language) -> str:
        """Return the name in a language."""
        return {"en": self.en, "zh": self.zh}[language]


COLOURS: tuple[Colour, ...] = (
    Colour("black", "黑色", ("000000", "1c1c1c", "2b2b2b")),
    Colour("dark grey", "深灰色", ("4a4a4a", "5e6064")),
    Colour("grey", "灰色", ("808080", "959a9e")),
    Colour("light grey", "浅灰色", ("b4b8bb", "d2d5d8")),
    Colour("white", "白色", ("ffffff", "f1f2f3")),
    Colour("dark red", "深红色", ("8b0000", "a01822", "6e0f18")),
    Colour("red", "红色", ("ff0000", "dc2430", "e8443c", "f24c14")),
    Colour("orange", "橙色", ("ff8c00", "ff7020", "f49a2c")),
    Colour("brown", "棕色", ("6b3a1c", "965028", "b8703c", "452418", "662113", "c1694f")),
    Colour("yellow", "黄色", ("ffff00", "ffcc48", "fbc420", "ffe070")),
    Colour("cream", "米色", ("faecc8", "ecd8b0", "f6e8da")),
    Colour("peach", "肉色", ("fad0b0", "f0b890", "e0a07c")),
    Colour("tan", "棕黄色", ("c8a064", "d4b078", "b0905c")),
    Colour("olive", "橄榄色", ("808000", "6c6c28", "5a5c1c")),
    Colour("light green", "浅绿色", ("90e090", "b8e6a0", "c0f0c4")),
    Colour("green", "绿色", ("00a000", "3cb44a", "78b04c", "00e400", "5c9030")),
    Colour("dark green", "深绿色", ("005a14", "1c4a28", "2e6034")),
    Colour("teal", "青色", ("008080", "20a8a0", "00c8c8", "387c80")),
    Colour("light blue", "浅蓝色", ("a0d8f4", "78c0f0", "c0e4f8", "70dcf8")),
    Colour("blue", "蓝色", ("0000ff", "1c6cd8", "3890e0", "4060c0", "00a0f0")),
    Colour("dark blue", "深蓝色", ("000080", "1c2c64", "263c70", "283848")),
    Colour("purple", "紫色", ("800080", "7c3cb0", "6040a0", "9858c8")),
    Colour("lilac", "淡紫色", ("c8a8e8", "b49cd4", "dcc8f0")),
    Colour("magenta", "品红色", ("ff00ff", "d81c90", "c83878")),
    Colour("pink", "粉色", ("ffb0c8", "f880a8", "f8c8d8", "ee7a90")),
)


def nearest(pixels: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Return the index in COLOURS of the colour nearest to each sRGB pixel, [..., 3] -> [...]."""
    samples, owners = _samples()
    distinct, places = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    distances = np.linalg.norm(lab(distinct)[:, None] - samples[None], axis=-1)
    names: NDArray[np.intp] = owners[distances.argmin(axis=1)][places].reshape(pixels.shape[:-1])
    return names


def lab(pixels: NDArray[np.uint8]) -> Floats:
    """Return CIELAB under D65 of sRGB pixels, [..., 3] -> [..., 3]: lightness 0 to 100, then a and b."""
    encoded = pixels.astype(np.float64) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _XYZ.T / _XYZ.sum(axis=1)  # white is (1, 1, 1) in both
    root = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
"""Linear sRGB to CIE XYZ (IEC 61966-2-1)."""


@lru_cache(maxsize=1)
def _samples() -> tuple[Floats, NDArray[np.intp]]:
    """Return every sample in CIELAB and the index of its colour."""
    listed = [(index, bytes.fromhex(sample)) for index, colour in enumerate(COLOURS) for sample in colour.samples]
    pixels = np.array([list(sample) for _, sample in listed], np.uint8)
    return lab(pixels), np.array([index for index, _ in listed])


def shares(names: NDArray[np.intp]) -> Mapping[Colour, float]:
    """Return the share of each colour among named pixels, the largest first; ties in the order of COLOURS."""
    counts = np.bincount(names.ravel(), minlength=len(COLOURS))
    order = np.argsort(-counts, kind="stable")
    return {COLOURS[i]: float(counts[i]) / names.size for i in order.tolist() if counts[i]}
