"""The zarr.json documents of a store, as zarr-python writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from kolors_zarr.store.layout import INDEX_CHUNK
from kolors_zarr.store.manifest import Column

_SERIALIZERS = {"string": "vlen-utf8", "bytes": "vlen-bytes"}
_TYPES = {"string": "string", "bytes": "variable_length_bytes"}
_CHECKSUM = {"name": "crc32c"}


def group_document(attributes: Mapping[str, Any]) -> bytes:
    """Return the document of a group."""
    return _text({"attributes": attributes, "zarr_format": 3, "node_type": "group"})


def samples_document(column: Column, *, shards: int, shard_rows: int) -> bytes:
    """Return the document of a column of samples: shards of `shard_rows` rows, chunks of one."""
    if column.kind == "array":
        serializer, dtype = _bytes_codec(column.dtype), column.dtype
        fill: str | float = 0.0 if dtype.startswith("float") else 0
    else:
        serializer, dtype, fill = {"name": _SERIALIZERS[column.kind], "configuration": {}}, _TYPES[column.kind], ""
    sharding = {
        "chunk_shape": [1, *column.shape],
        "codecs": [serializer, _CHECKSUM],
        "index_codecs": [_bytes_codec("uint64"), _CHECKSUM],
        "index_location": "end",
    }
    codecs = [{"name": "sharding_indexed", "configuration": sharding}]
    return _array([shards * shard_rows, *column.shape], dtype, [shard_rows, *column.shape], fill, codecs)


def index_document(dtype: str, shape: Sequence[int]) -> bytes:
    """Return the document of a column of the index: chunks of up to INDEX_CHUNK rows, the last one filled up."""
    chunk = [min(shape[0], INDEX_CHUNK), *shape[1:]]
    return _array(list(shape), dtype, chunk, 0, [_bytes_codec(dtype), _CHECKSUM])


def _array(shape: list[int], dtype: str, chunk: list[int], fill: str | float, codecs: list[dict[str, Any]]) -> bytes:
    return _text(
        {
            "shape": shape,
            "data_type": dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": fill,
            "codecs": codecs,
            "attributes": {},
            "zarr_format": 3,
            "node_type": "array",
            "storage_transformers": [],
        }
    )


def _bytes_codec(dtype: str) -> dict[str, Any]:
    return {"name": "bytes"} if dtype == "uint8" else {"name": "bytes", "configuration": {"endian": "little"}}


def _text(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=2).encode()
