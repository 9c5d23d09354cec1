"""Pictures and masks that a recipe names: read with care, and brought to the size that is drawn."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from kolors_kernel.errors import RecipeError

logger = logging.getLogger(__name__)


def read_picture(path: Path, *, size: tuple[int, int]) -> Tensor:
    """Return the picture [1, 3, H, W] in [-1, 1] at `size` (height, width); what is transparent is white.

    Raises RecipeError for a file that is no whole picture.
    """
    picture = _fitted(_laid_on(_opened(path), "white", "RGB"), size, Image.Resampling.LANCZOS, path)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]  # [1, 3, H, W]
    return pixels.float().div(127.5).sub(1)


def read_mask(path: Path, *, of: Path, size: tuple[int, int]) -> Tensor:
    """Return the mask [1, 1, H, W] at `size` (height, width): 1 where it is over half of white, else 0.

    Raises RecipeError unless it is as large as the picture `of`, and for a file that is no whole picture.
    """
    mask, picture = _opened(path), _opened(of)
    if mask.size != picture.size:
        raise RecipeError(
            f"the mask {path} is {mask.width} x {mask.height} pixels and the picture {of} "
            f"{picture.width} x {picture.height}; a mask is as large as its picture"
        )
    painted = _laid_on(mask, "black", "L").point([0] * 128 + [255] * 128)
    pixels = torch.from_numpy(np.array(_fitted(painted, size, Image.Resampling.NEAREST, path)))
    if not pixels.any():
        raise RecipeError(f"the mask {path} is dark everywhere: nothing would be painted anew")
    return pixels[None, None].bool().float()


def _opened(path: Path) -> Image.Image:
    """Return the picture of a file as its EXIF says it is to be seen, in eight bits a channel."""
    try:
        with Image.open(path) as file:
            file.load()
            picture = ImageOps.exif_transpose(file)
    # Pillow raises what its many readers happen to raise on damage.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise RecipeError(f"{path} is no picture that can be read: {error}") from error
    if picture.mode.startswith("I;16"):  # Pillow would cut off what is over 255
        picture = Image.fromarray((np.asarray(picture) / 257 + 0.5).astype(np.uint8))
    return picture


def _laid_on(picture: Image.Image, ground: str, mode: str) -> Image.Image:
    if not picture.has_transparency_data:
        return picture.convert(mode)
    seen = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", seen.size, ground), seen).convert(mode)


def _fitted(picture: Image.Image, size: tuple[int, int], by: Image.Resampling, path: Path) -> Image.Image:
    height, width = size
    if picture.size == (width, height):
        return picture
    logger.info(
        "%s is %d x %d pixels: scaled to cover %d x %d and cut around the middle",
        path.name,
        picture.width,
        picture.height,
        width,
        height,
    )
    return ImageOps.fit(picture, (width, height), method=by)
