"""What the header of a picture says: read here where no library tells it without decoding or warning."""

from __future__ import annotations

import struct
from typing import NamedTuple, TypeAlias

Data: TypeAlias = bytes | memoryview
"""An encoded picture."""
JPEG = b"\xff\xd8\xff"
_EXIF = b"Exif\0\0"
_ORIENTATION = 0x0112
_NO_FRAME = (0xC4, 0xC8, 0xCC)
"""Markers among those of frames (C0 to CF) that stand for tables instead."""


class JpegHeader(NamedTuple):
    """What the first frame header says, of the picture as it is stored, and its EXIF orientation."""

    bits: int
    height: int
    width: int
    components: int
    orientation: int


def jpeg_header(data: Data) -> JpegHeader | None:
    """Return what a JPEG's header says, or None where it is not segment after segment up to the frame."""
    at, turned = 2, 1
    try:
        while True:
            start, marker, length = struct.unpack_from(">BBH", data, at)
            if start != 0xFF or marker < 0xC0 or marker == 0xFF:
                return None
            body = at + 4
            if marker == 0xE1 and data[body : body + 6] == _EXIF:
                turned = orientation(data[body : at + 2 + length])
            elif marker < 0xD0 and marker not in _NO_FRAME:
                bits, height, width, components = struct.unpack_from(">BHHB", data, body)
                return JpegHeader(bits, height, width, components, turned)
            at += 2 + length
    except struct.error:  # the end
        return None


def orientation(exif: Data) -> int:
    """Return the orientation, 1 to 8, that an EXIF block asks for; 1, as stored, where it is silent or damaged."""
    tiff = exif[len(_EXIF) :] if exif[: len(_EXIF)] == _EXIF else exif
    order = ">" if tiff[:2] == b"MM" else "<"
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(count):
            tag, _, _, value, _ = struct.unpack_from(order + "HHIHH", tiff, start + 2 + 12 * entry)
            if tag == _ORIENTATION:
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
