"""Some pictures of each bucket of a store, as a training sees them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from kolors_kernel.errors import DataError
from kolors_kernel.values import SampleRecord
from kolors_zarr.loading.selection import Bucket
from kolors_zarr.pictures.decoding import probe
from kolors_zarr.pictures.fitting import centre, fill
from kolors_zarr.store.layout import group_name
from kolors_zarr.store.reading import Store
from kolors_zarr.tools.lettering import Lettering
from kolors_zarr.tools.sheets import GREY, INK, PALE, beside, blank, framed, stacked
from kolors_zarr.tools.telling import number_of

logger = logging.getLogger(__name__)
_AREA = 144 * 144
"""Of a picture on the sheet, in pixels."""
_NARROWEST = 144
"""What the text below a picture may take, however narrow that is."""
_CAPTION_LINES = 3
_MOST_BUCKETS = 48
_KINDS = {
    "image": "the pictures, scaled and cut to their buckets",
    "pixels": "the pictures as they are stored",
    "latents": "false colours: the first three channels of the latents, each stretched",
}


def lay_out(store: Store, buckets: Sequence[Bucket], *, most: int, font: Path | None) -> Image.Image:
    """Return a row for each bucket with up to `most` of its pictures, evenly spread over the stored order."""
    scribe = _Scribe(font)
    column = next(column for column in _KINDS if column in store.manifest.groups[0].columns)
    head = scribe.head(store.place.url, _KINDS[column])
    rows = [scribe.row(store, bucket, column=column, most=most) for bucket in buckets[:_MOST_BUCKETS]]
    if len(buckets) > len(rows):
        rows.append(scribe.line(f"{len(buckets) - len(rows)} more buckets are not shown"))
    return framed(stacked([head, *rows], gap=24), margin=28)


class _Scribe:
    """Writes beside and below pictures."""

    def __init__(self, font: Path | None) -> None:
        self.large, self.plain, self.small = (Lettering(size, font=font) for size in (22, 15, 12))

    def head(self, title: str, told: str) -> Image.Image:
        """Return what stands above all rows."""
        return stacked([self.line(self.large.readable(title), self.large), self.line(told, colour=GREY)], gap=6)

    def line(self, text: str, lettering: Lettering | None = None, *, colour: str = INK) -> Image.Image:
        """Return a line of text."""
        lettering = lettering or self.plain
        sheet = blank(lettering.width(text) + 2, lettering.line)
        ImageDraw.Draw(sheet).text((0, 0), text, colour, lettering.font)
        return sheet

    def row(self, store: Store, bucket: Bucket, *, column: str, most: int) -> Image.Image:
        """Return the pictures of a bucket below its name."""
        count = len(bucket.numbers)
        places = np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(np.int64))
        tiles = [self.tile(store, int(number), bucket.size, column) for number in bucket.at(places)]
        name = group_name(bucket.size)
        return stacked([self.line(f"{name}   {number_of(count, 'sample')}"), beside(tiles, gap=16)], gap=8)

    def tile(self, store: Store, number: int, bucket: tuple[int, int], column: str) -> Image.Image:
        """Return a picture with its id and a caption; a grey one that says so where it is damaged."""
        try:
            (record,) = store.records([number])
            picture, texts = _picture(store, number, bucket, column), list(self._texts(record))
        except DataError as error:
            logger.warning("sample number %d is not on the contact sheet: %s", number, error)
            picture = Image.new("RGB", _on_sheet(bucket)[::-1], PALE)
            texts = [("damaged", INK), (f"sample number {number}", GREY)]
        width = max(picture.width, _NARROWEST)
        (name, ink), *others = texts
        lines = [(self.small.ending(name, width), ink)]
        for text, colour in others:
            lines += [(line, colour) for line in self.small.wrapped(text, width, most=_CAPTION_LINES)]
        sheet = blank(width, picture.height + 6 + len(lines) * self.small.line)
        sheet.paste(picture, (0, 0))
        ImageDraw.Draw(sheet).rectangle((0, 0, picture.width - 1, picture.height - 1), outline=PALE)
        for i, (line, colour) in enumerate(lines):
            at = (0, picture.height + 6 + i * self.small.line)
            ImageDraw.Draw(sheet).text(at, line, colour, self.small.font)
        return sheet

    def _texts(self, record: SampleRecord) -> Iterator[tuple[str, str]]:
        """Yield what is written below a picture: its id, and the first caption that the font has the letters for."""
        yield self.small.readable(record.id), INK
        shown = next((text for text in record.captions.values() if self.small.has(text)), None)
        if shown is not None:
            yield shown, GREY
        elif record.captions:
            yield f"({', '.join(record.captions)}: letters that this font lacks)", GREY


def _picture(store: Store, number: int, bucket: tuple[int, int], column: str) -> Image.Image:
    if column == "image":
        (data,) = store.read_bytes("image", [number])
        where = f"sample number {number}"
        size = bucket if any(bucket) else probe(data, where=where)
        out = np.empty((*_on_sheet(size), 3), np.uint8)
        fill(data, out, where=where, corner=centre)
        return Image.fromarray(out)
    held = next(group for group in store.manifest.groups if group.name == group_name(bucket)).columns[column]
    array = np.empty((1, *held.shape), held.dtype)
    store.read_into(column, [number], array)
    if column == "latents":
        return Image.fromarray(false_colours(array[0])).resize(_on_sheet(bucket)[::-1], Image.Resampling.NEAREST)
    return Image.fromarray(array[0]).resize(_on_sheet(bucket)[::-1], Image.Resampling.LANCZOS)


def false_colours(latents: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the first three channels of latents [C, h, w] as red, green and blue, [h, w, 3].

    Each is stretched so that its middle 98 per cent go from black to white; one that is not there repeats the last.
    """
    channels = np.nan_to_num(latents[[min(channel, len(latents) - 1) for channel in range(3)]].astype(np.float32))
    low, high = np.percentile(channels, [1, 99], axis=(1, 2), keepdims=True)
    stretched = (channels - low) / np.maximum(high - low, 1e-6)
    colours: NDArray[np.uint8] = (stretched.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
    return np.ascontiguousarray(colours)


def _on_sheet(size: tuple[int, int]) -> tuple[int, int]:
    """Return the height and width of a picture on the sheet: all have about one area."""
    if not any(size):
        return _on_sheet((1, 1))
    scale = (_AREA / (size[0] * size[1])) ** 0.5
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
