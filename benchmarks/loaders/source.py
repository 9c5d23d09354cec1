"""The samples that every loader delivers, made once and kept as plain files: contents and captions end to end.

A latent is SDXL-like: a low-frequency field and noise, half precision, [4, side, side]. A picture is a JPEG of one of
five sizes around side x side. Each sample has two captions, which begin with its number.
"""

from __future__ import annotations

import io
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Array: TypeAlias = npt.NDArray[Any]
SHAPES = ((8, 8), (7, 9), (9, 7), (6, 10), (10, 6))  # heights and widths of pictures, in eighths of the side
THUMBNAIL = 8  # rows and columns of the means that a decoded picture is known by
DESCRIPTION = "雨中安静的街道，路灯的光映在湿漉漉的石板路上，行人撑着伞走过，远处是模糊的山影。" * 2
GRAIN = 4.25  # grey levels; what makes a picture of 512 x 512 67 kB


@dataclass(frozen=True)
class Source:
    """The folder of one data set: "latents" or "jpegs"."""

    folder: Path

    def __len__(self) -> int:
        return len(self.sizes)

    @cached_property
    def sizes(self) -> Array:
        """[N, 2] height and width of each latent or picture."""
        return self._array("sizes")

    @cached_property
    def offsets(self) -> Array:
        """[N + 1], where each content begins in `contents`."""
        return self._array("offsets")

    @cached_property
    def contents(self) -> Array:
        """All contents end to end, bytes, mapped."""
        return mapped(self.folder / "contents.bin")

    @cached_property
    def latents(self) -> Array:
        """[N, 4, side, side] float16, mapped: the contents of a set of latents."""
        return self.contents.view(np.float16).reshape(len(self), 4, *self.sizes[0])

    def content(self, number: int) -> bytes:
        """Return the bytes of one latent or JPEG."""
        return self.contents[self.offsets[number] : self.offsets[number + 1]].tobytes()

    def checksums(self) -> Array:
        """[N] the CRC-32 of each content."""
        return self._array("checksums")

    def thumbnails(self) -> Array:
        """[N, 8, 8, 3] means of each decoded picture, by another decoder than the loaders use."""
        return self._array("thumbnails")

    def _array(self, name: str) -> Array:
        found: Array = np.load(self.folder / f"{name}.npy")
        return found


def mapped(path: Path) -> Array:
    """Return the bytes of a file, mapped; a plain array, since every slice of numpy's own memmap class is dear."""
    return np.memmap(path, np.uint8, mode="r").view(np.ndarray)


def captions(number: int) -> tuple[str, str]:
    """Return the original and the synthetic caption of a sample."""
    original = f"{number:06d} a photograph of a quiet street in the rain"
    return (
        original,
        f"{number:06d} 雨中安静的街道，路灯的光映在湿漉漉的石板路上，行人撑着伞走过，远处是模糊的山影。" * 2,
    )


def prepare(folder: Path, *, latents: bool, count: int, side: int, seed: int = 0) -> Source:
    """Return a data set of `count` samples, made in `folder` unless it is there. Raises ValueError for a bad side."""
    if side % 64:
        raise ValueError(f"the side of a latent or picture must be a multiple of 64, not {side}")
    if not folder.exists():
        part = folder.with_name(folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        random = np.random.default_rng(seed)
        shapes = [(side, side)] if latents else [(side // 8 * h, side // 8 * w) for h, w in SHAPES]
        sizes = [shapes[number % len(shapes)] for number in range(count)]
        make: Callable[[np.random.Generator, tuple[int, int]], bytes] = latent if latents else jpeg
        _write(part, sizes, (make(random, size) for size in sizes), thumbnails=not latents)
        part.rename(folder)
    return Source(folder)


def _write(folder: Path, sizes: Sequence[tuple[int, int]], contents: Iterator[bytes], *, thumbnails: bool) -> None:
    lengths, checksums, means = [], [], []
    with (folder / "contents.bin").open("wb") as file:
        for content in contents:
            file.write(content)
            lengths.append(len(content))
            checksums.append(zlib.crc32(content))
            if thumbnails:
                means.append(thumbnail(np.asarray(Image.open(io.BytesIO(content)))))
    if thumbnails:
        np.save(folder / "thumbnails.npy", np.stack(means))
    np.save(folder / "sizes.npy", np.array(sizes))
    np.save(folder / "offsets.npy", np.cumsum([0, *lengths]))
    np.save(folder / "checksums.npy", np.array(checksums, np.uint32))
    texts = [text.encode() for number in range(len(sizes)) for text in captions(number)]
    (folder / "captions.bin").write_bytes(b"".join(texts))
    np.save(folder / "caption_offsets.npy", np.cumsum([0, *map(len, texts)]))


def latent(random: np.random.Generator, size: tuple[int, int]) -> bytes:
    """Return a low-frequency field with noise, [4, h, w] float16, as bytes."""
    height, width = size
    coarse = random.standard_normal((4, height // 16, width // 16), np.float32)
    field = coarse.repeat(16, axis=1).repeat(16, axis=2)
    return (field + 0.4 * random.standard_normal((4, height, width), np.float32)).astype(np.float16).tobytes()


def jpeg(random: np.random.Generator, size: tuple[int, int]) -> bytes:
    """Return a picture of soft fields, ellipses and grain as a JPEG of quality 90, 67 kB on average at 512 x 512."""
    height, width = size
    picture = Image.fromarray(random.integers(40, 216, (6, 6, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    draw = ImageDraw.Draw(picture)
    for _ in range(12):
        left, top, wide, high = random.integers(0, (width, height, width // 2, height // 2)).tolist()
        draw.ellipse((left, top, left + wide, top + high), fill=tuple(random.integers(0, 256, 3).tolist()))
    grain = random.standard_normal((height, width, 1), np.float32) * GRAIN
    buffer = io.BytesIO()
    Image.fromarray((np.asarray(picture) + grain).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def thumbnail(picture: Array) -> Array:
    """[h, w, 3] -> [8, 8, 3] float32, the means of its parts."""
    height, width, _ = picture.shape
    parts = picture.reshape(THUMBNAIL, height // THUMBNAIL, THUMBNAIL, width // THUMBNAIL, 3)
    means: Array = parts.mean(axis=(1, 3), dtype=np.float32)
    return means
