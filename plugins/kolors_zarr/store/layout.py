"""The layout of a store: one zarr v3 group, an array group per bucket, and a manifest that says what may be trusted.

    STORE/zarr.json                     attributes: {"kolors_store": {"version": 2}}
    STORE/manifest.json                 what is published, see `kolors_zarr.store.manifest`; written last, in one go
    STORE/samples/GROUP/zarr.json       a group per bucket: "HEIGHTxWIDTH" in pixels, "any" where none were set
    STORE/samples/GROUP/COLUMN/         an array with one row per sample
        zarr.json                       shape [shards * R, ...], shards of R rows, inner chunks of one row
        c/K/0/0/0                       shard K; as many zeros as the column has further axes
    STORE/index/EDITION/COLUMN/         an array with one row per sample, or per shard, of the whole store
        zarr.json                       unsharded, chunks of up to 65,536 rows, codecs bytes and crc32c
        c/K/0
    STORE/refused.jsonl                 a line for each input left out: {"input": ..., "reason": ...}, if there are any
    STORE/parts/                        what a writer knows of its finished parts; gone when they are published

Columns of samples, each present in all groups of a store or in none:

    id                  string (vlen-utf8)
    tags                string: a JSON object of texts
    caption_KEY         string; a sample without that caption, or with an empty one, has no inner chunk
    image               variable_length_bytes (vlen-bytes): the encoded picture as it came
    pixels              uint8 [rows, H, W, 3], brought to the bucket
    latents             float16 or float32 [rows, C, h, w]
    text_KEY            variable_length_bytes: conditioning in the merged form, see `kolors_zarr.store.conditioning`;
                        a sample that has any has it for each of its captions and for the empty one, and no other

A shard is R inner chunks, each followed by the CRC-32C of its bytes, in any order and equal ones once; then the index,
R pairs of little-endian uint64 (offset, bytes including the checksum; both 2^64 - 1 for a chunk that is not there);
then the CRC-32C of the index. Nothing is compressed: pictures are already, latents gain 0 to 8 per cent, texts are
small. A shard may hold fewer than R samples: its first rows are there, the others are not. Where no sample of a shard
has a caption, or a shard has no samples, there is no object. A string or bytes chunk is
what zarr's vlen codecs make of one element: uint32 1, uint32 length, the bytes.

Columns of the index; samples are numbered through: groups in the manifest's order, in a group shards, in a shard rows.

    size                uint16 [samples, 2]: original height and width
    crop                uint16 [samples, 4]: crop top and left, target height and width (0: picture as it came)
    captions            uint16 [samples]: bit i is set where the i-th caption key of the manifest is there
    tag_NAME            uint16 [samples]: 0 where the sample lacks the tag, else 1 + its place in the manifest's
                        vocabulary; only for tags of at most 4,096 distinct values whose name is a key
    count               uint32 [shards]: samples in the shard
    object_COLUMN       uint32 [shards, 3]: low and high half of the shard's bytes, and the CRC-32C of its index; zeros
                        where there is no object

A key is a letter, digit or underscore followed by any of these, dots and hyphens. The last chunk of a column of the
index is filled up with zeros.

Zarr reads a missing shard as zeros without a word. Here a shard must be there with the size and the index the manifest
names, and every inner chunk must match its checksum before a byte of it is used.
"""

from __future__ import annotations

import re

VERSION = 2
ATTRIBUTE = "kolors_store"
MANIFEST, SAMPLES, INDEX, PARTS = "manifest.json", "samples", "index", "parts"
REFUSED = "refused.jsonl"
CAPTION, TEXT, TAG, OBJECT = "caption_", "text_", "tag_", "object_"
"""Prefixes of columns; what follows is a caption key, a tag, a column."""
ANY = "any"
"""The group of pictures that are kept as they came, whatever their shape."""
INDEX_CHUNK = 65_536
MOST_VALUES = 4_096
"""A tag with more distinct values has no column in the index; it is read from the samples."""
MOST_CAPTIONS = 16
LARGEST_SIDE = 65_535
MOST_SAMPLES, MOST_SHARDS, MOST_SHARD_ROWS = 2**36, 2**26, 2**20
MOST_ROW_BYTES = 2**30
"""What no store goes beyond; a manifest that does is not one of ours, and opening it would take all memory."""
ARRAY_DTYPES = {"pixels": ("uint8",), "latents": ("float16", "float32")}
"""The columns of samples that are arrays, and what they may hold."""
ABSENT = 2**64 - 1
"""Offset and size of an inner chunk that is not there."""


def is_key(name: str) -> bool:
    """Tell whether a caption key or the name of a tag can be part of a column's name."""
    return re.fullmatch(r"\w[\w.-]*", name) is not None


def group_name(size: tuple[int, int]) -> str:
    """Return the group of a bucket of this height and width; (0, 0) stands for any."""
    return f"{size[0]}x{size[1]}" if any(size) else ANY


def group_size(name: str) -> tuple[int, int]:
    """Invert `group_name`."""
    if name == ANY:
        return 0, 0
    height, width = map(int, name.split("x"))
    return height, width


def column_key(group: str, column: str) -> str:
    """Return the key of a column's array."""
    return f"{SAMPLES}/{group}/{column}"


def shard_key(group: str, column: str, shard: int, *, axes: int) -> str:
    """Return the key of a shard of a column whose array has so many axes."""
    return chunk_key(column_key(group, column), shard, axes=axes)


def index_key(edition: int, column: str) -> str:
    """Return the key of an array of the index."""
    return f"{INDEX}/{edition}/{column}"


def chunk_key(array: str, number: int, *, axes: int) -> str:
    """Return the key of a chunk of an array of so many axes, or of its shard, which are all cut along the first."""
    return "/".join([array, "c", str(number), *["0"] * (axes - 1)])


def part_key(group: str, shard: int) -> str:
    """Return the key of a part row."""
    return f"{PARTS}/{group}-{shard}.json"
