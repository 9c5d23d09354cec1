"""One finished part of a store: its shards, written first, and the part row, which says that they are whole."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kolors_kernel.values import Sample
from kolors_zarr.store.columns import caption_keys, columns_of, holds, sizes_of, text_form
from kolors_zarr.store.layout import MOST_CAPTIONS, part_key, shard_key
from kolors_zarr.store.manifest import Column, TextForm, sealed, unsealed
from kolors_zarr.store.places import Place
from kolors_zarr.store.refused import Refused
from kolors_zarr.store.shard import encode_shard, index_checksum

Numbers = NDArray[np.uint16]


@dataclass(frozen=True)
class PartRow:
    """All that publishing needs to know of a part: shard `shard` of every column of `group`.

    `objects` has bytes and index checksum of the shards that there are. size [n, 2], crop [n, 4]; bit i of captions
    [n] is for `caption_keys[i]`; `tags` has the values of each tag, and [n] 0 or 1 + the number of a sample's value.
    `first` is the id of the first sample and `holds` says what all of them hold, for messages.
    """

    group: str
    shard: int
    first: str
    holds: str
    columns: Mapping[str, Column]
    text: TextForm | None
    objects: Mapping[str, tuple[int, int]]
    size: Numbers
    crop: Numbers
    caption_keys: Sequence[str]
    captions: Numbers
    tags: Mapping[str, tuple[Sequence[str], Numbers]]
    refused: Sequence[Refused]

    @property
    def samples(self) -> int:
        """The samples of the part."""
        return len(self.size)

    def to_bytes(self) -> bytes:
        """Return the row as it is stored."""
        return sealed(
            {
                **{name: getattr(self, name) for name in ("group", "shard", "first", "holds", "objects")},
                "columns": {name: column.model_dump(mode="json") for name, column in self.columns.items()},
                "text": self.text and self.text.model_dump(mode="json"),
                **{name: _base64(getattr(self, name)) for name in ("size", "crop", "captions")},
                "caption_keys": list(self.caption_keys),
                "tags": {name: [list(values), _base64(codes)] for name, (values, codes) in self.tags.items()},
                "refused": [asdict(each) for each in self.refused],
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str) -> Self:
        """Read a row. Raises DataError, calling it `where`, when it is not as it was written."""
        found = unsealed(data, where=where)
        return cls(
            **{name: found[name] for name in ("group", "shard", "first", "holds", "caption_keys")},
            columns={name: Column.model_validate(column) for name, column in found["columns"].items()},
            text=found["text"] and TextForm.model_validate(found["text"]),
            objects={name: (size, checksum) for name, (size, checksum) in found["objects"].items()},
            size=_numbers(found["size"]).reshape(-1, 2),
            crop=_numbers(found["crop"]).reshape(-1, 4),
            captions=_numbers(found["captions"]),
            tags={name: (values, _numbers(codes)) for name, (values, codes) in found["tags"].items()},
            refused=[Refused(**each) for each in found["refused"]],
        )


def write_part(
    place: Place, group: str, *, shard: int, samples: Iterable[Sample | Refused], shard_rows: int
) -> PartRow:
    """Write shard `shard` of each column of a group, and last the part row; the same samples make the same objects.

    Raises ValueError, naming the sample, for one that does not go with the others or is not complete.
    """
    everything = list(samples)
    kept = [each for each in everything if isinstance(each, Sample)]
    keys, (size, crop) = caption_keys(kept), sizes_of(kept)
    if len(keys) > MOST_CAPTIONS:
        raise ValueError(f"samples from '{kept[0].record.id}' on have the captions {keys}; at most {MOST_CAPTIONS} fit")
    form = text_form(kept)
    columns, objects = dict[str, Column](), dict[str, tuple[int, int]]()
    for name, column, chunks in columns_of(kept):
        data = encode_shard(chunks, shard_rows)
        place.write(shard_key(group, name, shard, axes=1 + len(column.shape)), data)
        columns[name], objects[name] = column, (len(data), index_checksum(data))
    row = PartRow(
        group=group,
        shard=shard,
        first=kept[0].record.id if kept else "",
        holds=holds(kept[0]) if kept else "",
        columns=columns,
        text=form,
        objects=objects,
        size=size,
        crop=crop,
        caption_keys=keys,
        captions=_caption_bits(kept, keys),
        tags=_tags(kept),
        refused=[each for each in everything if isinstance(each, Refused)],
    )
    place.write(part_key(group, shard), row.to_bytes())
    return row


def _caption_bits(samples: Sequence[Sample], keys: Sequence[str]) -> Numbers:
    bits = [sum(1 << i for i, key in enumerate(keys) if sample.record.captions.get(key)) for sample in samples]
    return np.array(bits, np.uint16)


def _tags(samples: Sequence[Sample]) -> dict[str, tuple[list[str], Numbers]]:
    found: dict[str, tuple[list[str], Numbers]] = {}
    for name in sorted({name for sample in samples for name in sample.record.tags}):
        values = sorted({sample.record.tags[name] for sample in samples if name in sample.record.tags})
        codes = {value: code for code, value in enumerate(values, start=1)}
        own = [codes[sample.record.tags[name]] if name in sample.record.tags else 0 for sample in samples]
        found[name] = values, np.array(own, np.uint16)
    return found


def _base64(numbers: Numbers) -> str:
    return base64.b64encode(numbers.astype("<u2").tobytes()).decode()


def _numbers(text: Any) -> Numbers:
    return np.frombuffer(base64.b64decode(text), "<u2")
