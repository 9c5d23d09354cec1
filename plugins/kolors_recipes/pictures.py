"""Pictures as files: PNGs that say how they were made, and contact sheets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from kolors_weights.writing import write_file

if TYPE_CHECKING:
    from torch import Tensor

NONE: Mapping[str, str] = {}
THUMBNAIL = 512
"""The longest side of a picture on a contact sheet, in pixels."""


def to_picture(image: Tensor) -> Image.Image:
    """Turn one image [3, H, W] in [-1, 1] into an 8-bit RGB picture; values outside are clamped."""
    levels = image.float().clamp(-1, 1).add(1).mul(127.5).round().byte()
    return Image.fromarray(levels.permute(1, 2, 0).cpu().numpy())


def contact_sheet(images: Tensor, *, columns: int) -> Image.Image:
    """Lay images [N, 3, H, W] in rows of `columns` on white; large ones are made smaller."""
    return _sheet([_thumbnail(to_picture(each)) for each in images], columns=columns)


def sheet_of_files(paths: Sequence[Path], *, columns: int) -> Image.Image:
    """Lay the pictures of files in rows of `columns` on white; large ones are made smaller."""
    pictures = list[Image.Image]()
    for path in paths:
        with Image.open(path) as picture:
            pictures.append(_thumbnail(picture.convert("RGB")))
    return _sheet(pictures, columns=columns)


def _thumbnail(picture: Image.Image) -> Image.Image:
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return picture


def _sheet(pictures: Sequence[Image.Image], *, columns: int, gap: int = 4) -> Image.Image:
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    width, height = pictures[0].width + gap, pictures[0].height + gap
    sheet = Image.new("RGB", (columns * width + gap, rows * height + gap), "white")
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (gap + index % columns * width, gap + index // columns * height))
    return sheet


def save_png(picture: Image.Image, path: Path, *, text: Mapping[str, str] = NONE) -> None:
    """Write a PNG with text chunks, whole or not at all. Raises RunError when the disk refuses."""
    chunks = PngInfo()
    for key, value in text.items():
        chunks.add_itxt(key, value)
    write_file(path, lambda file: picture.save(file, format="png", pnginfo=chunks))


def is_kept(path: Path, text: Mapping[str, str], *, since: int) -> bool:
    """Tell whether there is a whole PNG with these text chunks, written after `since` in ns."""
    try:
        if path.stat().st_mtime_ns <= since:
            return False
        with Image.open(path) as picture:
            picture.load()
            return text.items() <= dict(getattr(picture, "text", {})).items()
    except (OSError, SyntaxError, ValueError):  # none there, or a damaged one
        return False
