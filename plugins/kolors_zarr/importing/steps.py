"""What is done with inputs: put into buckets by their headers, then read, checked, and kept or brought to size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

import numpy as np

from kolors_kernel.errors import DataError
from kolors_kernel.graph import step
from kolors_kernel.values import Sample, SampleRecord
from kolors_zarr.buckets.assign import Bucketing
from kolors_zarr.collections.inputs import Collection, Entry, Input
from kolors_zarr.pictures.decoding import decode, probe
from kolors_zarr.pictures.fitting import centre, fill
from kolors_zarr.pictures.headers import JPEG
from kolors_zarr.store.layout import LARGEST_SIDE

if TYPE_CHECKING:
    from kolors_zarr.pictures.decoding import Size

Inputs: TypeAlias = Sequence[Input]
Verdicts: TypeAlias = list["Size | str"]
"""For each input a height and width in pixels, or why it is refused."""

_HEAD = 65_536
"""Bytes that hold the header of nearly every JPEG."""


@step(writes="sizes")
def measure(inputs: Inputs, collection: Collection) -> Verdicts:
    """Read the pictures' sizes from their headers."""
    return [_verdict(each, collection.open) for each in inputs]


@step(writes="sizes")
def measure_with_captions(inputs: Inputs, collection: Collection) -> Verdicts:
    """Read the pictures' sizes from their headers, and refuse those without a caption."""

    def opened(each: Input) -> BinaryIO:
        entry = collection.read(each)
        if not entry.captions:
            raise DataError("it has no caption (without_caption: refuse)")
        return BytesIO(entry.image)

    return [_verdict(each, opened) for each in inputs]


@step(writes="buckets")
def assign(sizes: Verdicts, bucketing: Bucketing) -> Verdicts:
    """Put each size into its bucket (2.2.2)."""
    known = [size for size in sizes if not isinstance(size, str)]
    found = bucketing.assign([height for height, _ in known], [width for _, width in known])
    reasons = found.reasons.tolist()
    buckets = (
        bucketing.sentence(reason, size) if reason else (height, width)
        for size, (height, width), reason in zip(known, found.sizes.tolist(), reasons, strict=True)
    )
    return [size if isinstance(size, str) else next(buckets) for size in sizes]


@step(writes="entry")
def read(each: Input, collection: Collection) -> Entry:
    """Read a picture with its captions and tags (2.2.1)."""
    return collection.read(each)


@step(writes="record")
def describe(each: Input, entry: Entry) -> SampleRecord:
    """Say what is known of a picture."""
    return SampleRecord(each.name, probe(entry.image, where=each.name), entry.captions, entry.tags)


@step(writes="encoded")
def keep(entry: Entry, record: SampleRecord) -> Sample:
    """Keep a picture as it came, once all of it was seen to decode."""
    decode(entry.image, where=record.id, at_least=(1, 1))
    return Sample(record, image=entry.image)


@step(writes="pixels")
def bring(entry: Entry, record: SampleRecord, bucket: Size) -> Sample:
    """Scale a picture to cover its bucket and take the middle (2.2.2)."""
    import torch  # only the workers that make pixels load it

    pixels = np.empty((*bucket, 3), np.uint8)
    corner = fill(entry.image, pixels, where=record.id, corner=centre)
    return Sample(record, pixels=torch.from_numpy(pixels).permute(2, 0, 1), size=(*record.size, *corner, *bucket))


def _verdict(each: Input, opened: Callable[[Input], BinaryIO]) -> Size | str:
    if each.problem:
        return each.problem
    try:
        with opened(each) as file:
            height, width = _size(file, each.name)
    except DataError as error:
        return str(error)
    if max(height, width) > LARGEST_SIDE:
        return f"it is {height} x {width} pixels, and a store keeps sides of at most {LARGEST_SIDE}"
    return height, width


def _size(file: BinaryIO, name: str) -> Size:
    data = file.read(_HEAD)
    if not data:
        raise DataError("the file is empty")
    if data[: len(JPEG)] == JPEG:  # other formats say only at the end whether they are animated
        try:
            return probe(data, where=name)
        except DataError:
            pass
    return probe(data + file.read(), where=name)
