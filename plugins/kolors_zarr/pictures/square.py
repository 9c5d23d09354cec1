"""Encoded pictures to squares of pixels."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from kolors_kernel.errors import DataError


def decode(data: bytes, *, where: str) -> Image.Image:
    """Return an encoded picture upright, in RGB, on white where it is transparent. Raises DataError naming `where`."""
    try:
        with Image.open(BytesIO(data)) as opened:
            if opened.mode[0] in "IF":  # Pillow would clip such values to 255
                raise DataError(f"the picture of {where} has more than 8 bits a channel; convert it to 8 bits")
            picture = ImageOps.exif_transpose(opened)
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                white = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(white, picture)
            return picture.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"the picture of {where} cannot be decoded: {error}") from error


def fit(picture: Image.Image, resolution: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Return the picture as uint8 [3, resolution, resolution] and the crop's top and left in pixels of that scale.

    The shorter side is brought to `resolution` with a Lanczos filter, and the middle of the longer one is taken.
    """
    scale = resolution / min(picture.size)
    width, height = (max(resolution, round(side * scale)) for side in picture.size)
    if (width, height) != picture.size:
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    top, left = (height - resolution) // 2, (width - resolution) // 2
    pixels = np.asarray(picture.crop((left, top, left + resolution, top + resolution)))
    return pixels.transpose(2, 0, 1).copy(), (top, left)
