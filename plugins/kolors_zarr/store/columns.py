"""What samples hold, column by column: the bytes of their rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kolors_kernel.values import NO_CAPTION, Sample
from kolors_zarr.store.conditioning import form_of, pack
from kolors_zarr.store.layout import ARRAY_DTYPES, CAPTION, LARGEST_SIDE, TEXT, is_key
from kolors_zarr.store.manifest import Column, TextForm
from kolors_zarr.store.shard import encode_element

if TYPE_CHECKING:
    from torch import Tensor

Chunks: TypeAlias = list[bytes | None]


def columns_of(samples: Sequence[Sample]) -> Iterator[tuple[str, Column, Chunks]]:
    """Yield the columns of some samples by name, each with a chunk for every sample or None where one lacks it.

    Raises ValueError, naming the sample, unless all hold the same things in the same shapes and dtypes, or where one
    is not complete: neither an image nor latents, no conditioning for one of its captions.
    """
    if not samples:
        return
    first = samples[0]
    for sample in samples:
        require_complete(sample)
        if holds(sample) != holds(first):
            raise ValueError(
                f"sample '{sample.record.id}' holds {holds(sample)}, but '{first.record.id}' holds {holds(first)}"
            )
    yield "id", *_strings(samples, lambda sample: sample.record.id)
    yield "tags", *_strings(samples, lambda sample: json.dumps(dict(sample.record.tags), ensure_ascii=False))
    for key in caption_keys(samples):
        yield CAPTION + key, *_strings(samples, partial(_caption, key=key))
    if first.image is not None:
        yield "image", *_bytes(samples, lambda sample: sample.image)
    if first.pixels is not None:
        yield "pixels", *_arrays(samples, "pixels", lambda sample: _present(sample.pixels).permute(1, 2, 0))
    if first.latents is not None:
        yield "latents", *_arrays(samples, "latents", lambda sample: _present(sample.latents))
    for key in sorted({key for sample in samples for key in sample.conditioning}):
        yield TEXT + key, *_bytes(samples, partial(_packed, key=key))


def caption_keys(samples: Iterable[Sample]) -> list[str]:
    """Return the keys of the captions that at least one of the samples has."""
    return sorted({key for sample in samples for key, text in sample.record.captions.items() if text})


def text_form(samples: Iterable[Sample]) -> TextForm | None:
    """Return how the conditioning of some samples is stored. Raises ValueError when it differs among them."""
    form, owner = None, ""
    for sample in samples:
        for text in sample.conditioning.values():
            found = form_of(text)
            if form is not None and found != form:
                raise ValueError(
                    f"sample '{sample.record.id}' has conditioning as {found}, but '{owner}' has it as {form}"
                )
            form, owner = found, sample.record.id
    return form


def sizes_of(samples: Sequence[Sample]) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Return the original sizes [samples, 2] and what was cut of them [samples, 4], as the index has them."""
    rows = [_size_row(sample) for sample in samples]
    table = np.array(rows, np.uint16).reshape(-1, 6)
    return table[:, :2], table[:, 2:]


def holds(sample: Sample) -> str:
    """Return in words what a sample holds."""
    parts = {
        "image": sample.image is not None,
        "pixels": sample.pixels is not None,
        "latents": sample.latents is not None,
        "conditioning": bool(sample.conditioning),
    }
    return " and ".join(name for name, there in parts.items() if there) or "nothing"


def require_complete(sample: Sample) -> None:
    """Raise ValueError unless a sample has a picture, and conditioning for all its captions if for any."""
    name, captions = f"sample '{sample.record.id}'", caption_keys([sample])
    if sample.image is None and sample.pixels is None and sample.latents is None:
        raise ValueError(f"{name} has neither an image nor pixels nor latents")
    if sample.conditioning and set(sample.conditioning) != {*captions, NO_CAPTION}:
        raise ValueError(
            f"{name} has conditioning for {sorted(sample.conditioning)}, but needs it for {[*captions, NO_CAPTION]}: "
            "its captions and the empty one"
        )
    for key in captions:
        if not is_key(key):
            raise ValueError(f"{name} has a caption under {key!r}; a key is of letters, digits and _.-")


def _size_row(sample: Sample) -> tuple[int, ...]:
    record = sample.record
    # A picture as it came is cut when it is read; pixels and latents without a cut are of the whole picture.
    whole = (0, 0, 0, 0) if sample.pixels is None and sample.latents is None else (0, 0, *record.size)
    row = sample.size or (*record.size, *whole)
    if row[:2] != tuple(record.size):
        raise ValueError(f"sample '{record.id}' is {record.size} by its record and {row[:2]} by its size")
    if min(row) < 0 or min(record.size) < 1 or max(row) > LARGEST_SIDE:
        raise ValueError(f"sample '{record.id}' has the size {row}; a store keeps sides of 1 to {LARGEST_SIDE}")
    return row


def _strings(samples: Sequence[Sample], read: Callable[[Sample], str | None]) -> tuple[Column, Chunks]:
    def encoded(sample: Sample) -> bytes | None:
        try:
            text = read(sample)
            return None if text is None else text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"sample {sample.record.id!r} has text that is not Unicode: {error}") from error

    found = [encoded(sample) for sample in samples]
    return Column(kind="string"), [None if text is None else encode_element(text) for text in found]


def _bytes(samples: Sequence[Sample], read: Callable[[Sample], bytes | None]) -> tuple[Column, Chunks]:
    found = [read(sample) for sample in samples]
    return Column(kind="bytes"), [None if data is None else encode_element(data) for data in found]


def _caption(sample: Sample, key: str) -> str | None:
    return sample.record.captions.get(key) or None


def _packed(sample: Sample, key: str) -> bytes | None:
    text = sample.conditioning.get(key)
    return None if text is None else pack(text)


def _arrays(samples: Sequence[Sample], name: str, read: Callable[[Sample], Tensor]) -> tuple[Column, Chunks]:
    column, chunks = None, Chunks()
    for sample in samples:
        tensor = read(sample)
        dtype, shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
        if dtype not in ARRAY_DTYPES[name]:
            known = " or ".join(ARRAY_DTYPES[name])
            raise ValueError(f"sample '{sample.record.id}' has {name} in {dtype}; a store keeps {known}")
        own = Column(kind="array", dtype=dtype, shape=shape)
        if column is not None and own != column:
            raise ValueError(
                f"sample '{sample.record.id}' has {name} as {dtype} {list(shape)}, but "
                f"'{samples[0].record.id}' as {column.dtype} {list(column.shape)}"
            )
        column = own
        chunks.append(_to_array(tensor).tobytes())
    assert column is not None
    return column, chunks


def _to_array(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = np.ascontiguousarray(tensor.detach().cpu().numpy())
    return array


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor
