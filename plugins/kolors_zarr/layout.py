"""The layout of a store: one zarr v3 group with one or two tables, written once and never changed.

    STORE/zarr.json      attributes: {"kolors_store": {"version": 1, "count": n}}
    STORE/samples/       a row per sample, in the order they were written
        id               bytes: UTF-8
        tags             bytes: a JSON object of texts
        caption_KEY      bytes: UTF-8, for each caption key that any sample has; empty where a sample has none
        size             int32 [n, 6]: original height and width, crop top and left, target height and width
        image            bytes: the encoded picture as it came, never compressed again
        latents          float16 or float32 [n, C, h, w]
        texts            bytes: a JSON object, caption key to the row of `texts` that holds its conditioning
    STORE/texts/         a row per distinct conditioning: equal texts, the empty one above all, are kept once
        tokens           float16 or float32 [m, L, D]
        pooled           float16 or float32 [m, P]
        key_bias         float16 or float32 [m, L], if the encoder gives one

A store has `image` or `latents` or both. Each table has attributes {"count": rows, "columns": {name: kind}} with kind
"bytes" or "array", and two more arrays, with columns in the order of "columns":

    checksums            uint32 [rows, columns]: the CRC-32 of each value's little-endian bytes
    offsets              uint64 [rows + 1, columns of bytes]: row i is data[offsets[i] : offsets[i + 1]]

A column of bytes is one flat uint8 array. Zarr's own types for ragged values (vlen-bytes, vlen-utf8) are not part of
the v3 specification, warn when used, and not every reader knows them; flat bytes are read by all. Every array is cut
into chunks of about 64 KiB, each with a CRC-32C, and the chunks are packed into shards of up to 64 MiB: a sample is
read without its neighbours, and a small store is a couple of dozen files. Text and indices are compressed with zstd;
pictures and latents are not, as it gains nothing.

Zarr reads a missing chunk as zeros without a word. Hence the checksums per value: whatever is lost or changed is found
when a sample is first read. The folder is written under another name and renamed when complete.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from kolors_kernel.errors import DataError

VERSION = 1
ATTRIBUTE = "kolors_store"
CHUNK_BYTES = 64 * 1024
SHARD_BYTES = 64 * 1024 * 1024
SAMPLES, TEXTS = "samples", "texts"
CHECKSUMS, OFFSETS = "checksums", "offsets"
CAPTION = "caption_"
"""The prefix of a caption's column; what follows is its key."""
COMPRESSED = frozenset({"id", "tags", "size", "texts", CHECKSUMS, OFFSETS})
"""The columns, besides captions, that zstd makes smaller."""

ColumnKind = Literal["bytes", "array"]


def is_compressed(column: str) -> bool:
    """Tell whether a column is worth compressing."""
    return column in COMPRESSED or column.startswith(CAPTION)


def manifest(count: int) -> dict[str, int]:
    """Return the attribute that makes a zarr group a store of `count` samples."""
    return {"version": VERSION, "count": count}


def require_store(attributes: Mapping[str, Any], where: Path) -> int:
    """Return the number of samples of the store at `where`. Raises DataError when it is none, or of a newer version."""
    data = attributes.get(ATTRIBUTE)
    if not isinstance(data, Mapping) or not isinstance(data.get("version"), int):
        raise DataError(f"{where} is a zarr group but not a store of samples: it has no attribute '{ATTRIBUTE}'")
    if data["version"] > VERSION:
        raise DataError(
            f"{where} is a store of version {data['version']}, and this installation reads up to {VERSION}; "
            "upgrade kolors-kernel"
        )
    if not isinstance(data.get("count"), int):
        raise DataError(f"{where}/zarr.json is damaged: '{ATTRIBUTE}' has no count; restore or rebuild the store")
    return int(data["count"])
