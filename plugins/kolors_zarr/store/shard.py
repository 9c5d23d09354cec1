"""A shard: the chunks of some rows, each with its checksum, and the index that finds them."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from kolors_zarr.store.checksums import CHECKSUM_BYTES, crc32c
from kolors_zarr.store.layout import ABSENT

_ELEMENT = struct.Struct("<II")
ELEMENT_BYTES = _ELEMENT.size
"""What zarr's vlen codecs put before an element: the number of elements, which is one, and its length."""


def index_bytes(rows: int) -> int:
    """Return how many bytes at the end of a shard of so many rows are its index and the checksum of that."""
    return 16 * rows + CHECKSUM_BYTES


def encode_shard(chunks: Sequence[bytes | None], rows: int) -> bytes:
    """Return a shard of `rows` rows, of which the first hold these chunks; equal chunks are kept once.

    None is a chunk that is not there. Raises ValueError when there are more chunks than rows.
    """
    if len(chunks) > rows:
        raise ValueError(f"{len(chunks)} chunks do not fit into a shard of {rows} rows")
    index = np.full((rows, 2), ABSENT, "<u8")
    kept: dict[tuple[int, int], tuple[bytes, int]] = {}  # by checksum and length: the chunk and where it is
    pieces: list[bytes] = []
    end = 0
    for row, chunk in enumerate(chunks):
        if chunk is None:
            continue
        checksum = crc32c(chunk)
        same, start = kept.setdefault((checksum, len(chunk)), (chunk, end))
        if same != chunk or start == end:  # another chunk of this checksum, or a new one
            start = end
            pieces += chunk, _little(checksum)
            end += len(chunk) + CHECKSUM_BYTES
        index[row] = start, len(chunk) + CHECKSUM_BYTES
    table = index.tobytes()
    return b"".join([*pieces, table, _little(crc32c(table))])


def index_checksum(shard: bytes) -> int:
    """Return the CRC-32C of a shard's index, which are the last bytes of the shard."""
    return int.from_bytes(shard[-CHECKSUM_BYTES:], "little")


def encode_element(data: bytes) -> bytes:
    """Return what zarr's vlen codecs make of a chunk of one text or one string of bytes."""
    return _ELEMENT.pack(1, len(data)) + data


def _little(checksum: int) -> bytes:
    return checksum.to_bytes(CHECKSUM_BYTES, "little")
