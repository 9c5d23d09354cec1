"""Encoded pictures to upright RGB: JPEG by simplejpeg, everything else and odd JPEGs by Pillow.

JPEG, PNG, WebP, GIF and BMP of up to 8 bits a channel are taken, one picture to a file. Profiles are not applied.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import NamedTuple, TypeAlias

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageChops
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from kolors_kernel.errors import DataError
from kolors_zarr.pictures.headers import JPEG, Data, jpeg_header, orientation

Pixels: TypeAlias = NDArray[np.uint8]
Size: TypeAlias = tuple[int, int]
"""Height and width, in pixels."""

MOST_PIXELS = 2**27
"""The largest picture taken, 400 MB in RGB: what says it is larger is held for a decompression bomb."""
_WORTH_SCALING = 1.3
"""A JPEG decoded at 7/8 of its size takes longer than a whole one, and saves less in resampling."""
_PNG = b"\x89PNG\r\n\x1a\n"
_READERS: tuple[tuple[bytes, type[ImageFile]], ...] = (
    (JPEG, JpegImageFile),
    (_PNG, PngImageFile),
    (b"RIFF", WebPImageFile),
    (b"GIF8", GifImageFile),
    (b"BM", BmpImageFile),
)
"""How each format begins. Pillow's own search would try fifty formats, and warns before a size can be refused."""
_DAMAGE = (ValueError, OSError, SyntaxError, EOFError, IndexError, struct.error, Image.DecompressionBombError, Warning)
"""What the libraries raise for pictures they cannot use; warnings where these are errors."""


class _Header(NamedTuple):
    """The picture as it is stored, before it is turned."""

    size: Size
    orientation: int
    is_plain_jpeg: bool

    @property
    def lies_on_its_side(self) -> bool:
        """Whether turning it upright exchanges height and width."""
        return self.orientation >= 5


def probe(data: Data, *, where: str) -> Size:
    """Return the (height, width) of the upright picture from its header alone.

    Raises DataError naming `where` for all that `decode` refuses but damage beyond the header.
    """
    with _naming(where):
        header = _header(data)
        return header.size[::-1] if header.lies_on_its_side else header.size


def decode(data: Data, *, where: str, at_least: Size | None = None, into: Pixels | None = None) -> Pixels:
    """Return an encoded picture as uint8 [H, W, 3], RGB, upright by its EXIF, on white where it is transparent.

    A JPEG much larger than `at_least` is decoded at the smallest of its scales (eighths) that covers that size; all
    else at full size. `into` [h, w, 3] is filled and returned if a JPEG comes out at just that size and upright. What
    is returned may be a view with any strides. Raises DataError naming `where` for a picture that is damaged, has no
    pixels or more than MOST_PIXELS, more than 8 bits a channel or several frames, or is of another format.
    """
    with _naming(where):
        header = _header(data)
        if header.is_plain_jpeg:
            try:
                return upright(_decode_jpeg(data, header, at_least, into), header.orientation)
            except ValueError:
                pass  # an unusual subsampling, or flaws that Pillow either overlooks or has a word for
        with _opened(data) as opened:
            return upright(_rgb(opened), header.orientation)


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Return stored pixels [H, W, 3] as an EXIF orientation of 1 to 8 wants them seen: themselves or a view."""
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return pixels[::rows, ::columns]


def _header(data: Data) -> _Header:
    jpeg = jpeg_header(data) if data[:3] == JPEG else None
    if jpeg is not None:
        header = _Header((jpeg.height, jpeg.width), jpeg.orientation, jpeg.components in (1, 3))
        bits, frames = jpeg.bits, 1
    else:
        with _opened(data) as opened:
            header = _Header(opened.size[::-1], orientation(opened.info.get("exif", b"")), False)
            bits = data[24] if isinstance(opened, PngImageFile) else 8
            frames = getattr(opened, "n_frames", 1)
    height, width = header.size
    if height * width == 0:
        raise ValueError(f"it has no pixels: its size is {height} x {width}")
    if height * width > MOST_PIXELS:
        raise ValueError(f"it says it is {height} x {width} pixels, and more than {MOST_PIXELS} are not decoded")
    if bits > 8:
        raise ValueError(f"it has more than 8 bits a channel ({bits}); convert it to 8 bits")
    if frames > 1:
        raise ValueError(f"it is animated, with {frames} frames; save the one that is meant")
    return header


def _decode_jpeg(data: Data, header: _Header, at_least: Size | None, into: Pixels | None) -> Pixels:
    height, width = (at_least[::-1] if header.lies_on_its_side else at_least) if at_least is not None else header.size
    scale = {"min_height": height, "min_width": width, "min_factor": _WORTH_SCALING}
    if into is not None and header.orientation == 1:
        size = simplejpeg.decode_jpeg_header(data, **scale)[:2]
        if size == into.shape[:2] and into.flags.c_contiguous:
            simplejpeg.decode_jpeg(data, buffer=into, **scale)
            return into
    pixels: Pixels = simplejpeg.decode_jpeg(data, **scale)
    return pixels


@contextmanager
def _opened(data: Data) -> Iterator[ImageFile]:
    for begins, reader in _READERS:
        if data[: len(begins)] == begins:
            try:
                opened = reader(BytesIO(data))
            except SyntaxError as error:
                raise ValueError(f"its header is damaged, or says that it has no pixels ({error})") from error
            with opened:
                yield opened
            return
    raise ValueError("it is neither JPEG nor PNG, WebP, GIF or BMP")


def _rgb(picture: ImageFile) -> Pixels:
    if picture.has_transparency_data:
        colours = picture.convert("RGBA")
        white = Image.new("RGB", colours.size, "white")
        white.paste(colours, mask=colours)
        return np.asarray(white)
    if picture.format == "JPEG" and picture.mode == "CMYK" and "adobe" not in picture.info:
        # Pillow takes every CMYK JPEG for one of Adobe's, whose inks are stored inverted.
        return np.asarray(ImageChops.invert(picture).convert("RGB"))
    return np.asarray(picture.convert("RGB"))


@contextmanager
def _naming(where: str) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise DataError(f"the picture of {where} cannot be decoded: {error}") from error
