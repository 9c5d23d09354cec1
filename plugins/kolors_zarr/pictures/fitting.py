"""Pictures to the size of their bucket: scaled to cover it, and what sticks out cut off."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from PIL import Image

from kolors_zarr.pictures.decoding import Pixels, Size, decode, probe
from kolors_zarr.pictures.headers import Data

Corner: TypeAlias = Callable[[Size, Size], Size]
"""(the scaled picture's size, the bucket's) -> top and left of the crop in the scaled picture, in pixels."""


def cover(size: Size, bucket: Size) -> Size:
    """Return the (height, width) at which a picture just covers a bucket, its aspect kept to the nearest pixel."""
    (height, width), (tall, wide) = size, bucket
    if tall * width >= wide * height:
        return tall, max(wide, (2 * width * tall + height) // (2 * height))
    return max(tall, (2 * height * wide + width) // (2 * width)), wide


def centre(scaled: Size, bucket: Size) -> Size:
    """Return the corner of the crop from the middle."""
    return (scaled[0] - bucket[0]) // 2, (scaled[1] - bucket[1]) // 2


def anywhere(scaled: Size, bucket: Size, *, key: int) -> Size:
    """Return the corner of a crop that `key`, 64 random bits, picks: each one is equally likely.

    One key serves both directions, since a picture that just covers its bucket sticks out in one at most.
    """
    top, left = (key * (much - few + 1) >> 64 for much, few in zip(scaled, bucket, strict=True))
    return top, left


def fill(data: Data, out: Pixels, *, where: str, corner: Corner) -> Size:
    """Decode a picture into `out`, uint8 [H, W, 3] of the bucket's size; return the top and left of the crop.

    Both are in pixels of the scaled picture, as the micro-conditioning wants them. A JPEG that has the bucket's size,
    or one that an eighth of its scale gives, goes straight into `out`. Raises DataError as `decode` does.
    """
    bucket = out.shape[0], out.shape[1]
    scaled = cover(probe(data, where=where), bucket)
    cut = corner(scaled, bucket)
    pixels = decode(data, where=where, at_least=scaled, into=out)
    if pixels is not out:
        resample(pixels, out, scaled=scaled, corner=cut)
    return cut


def resample(pixels: Pixels, out: Pixels, *, scaled: Size, corner: Size) -> None:
    """Put into `out` [h, w, 3] its part of pixels [H, W, 3] brought to the size `scaled`, by a Lanczos filter.

    Nothing outside the crop is computed; pixels that already have that size are copied as they are.
    """
    (height, width), (top, left) = out.shape[:2], corner
    if pixels.shape[:2] == scaled:
        out[...] = pixels[top : top + height, left : left + width]
        return
    rows, columns = pixels.shape[:2]
    box = (
        left * columns / scaled[1],
        top * rows / scaled[0],
        (left + width) * columns / scaled[1],
        (top + height) * rows / scaled[0],
    )
    picture = Image.fromarray(pixels)
    out[...] = np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS, box=box, reducing_gap=2.0))
