"""Reading a store: its records at once, pictures, latents and conditioning by row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import zarr
from torch import Tensor

from kolors_kernel.errors import DataError
from kolors_kernel.values import Conditioning, SampleRecord
from kolors_zarr.layout import CAPTION, SAMPLES, TEXTS, require_store
from kolors_zarr.table import UNREADABLE, Table

_BLOCK = 4096
"""How many records are read at a time."""


class Store:
    """An open store. `records` are in memory; everything else is read, and checked, when asked for.

    Raises DataError when `path` is not a store, is of a newer version, lacks files or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        root = _open(path)
        self.count = require_store(dict(root.attrs), path)
        self.samples = self._table(root, SAMPLES)
        if self.samples.count != self.count:
            raise DataError(f"{path} is damaged: it counts {self.count} samples and holds {self.samples.count}")
        self.samples.require_files(["id"])
        ids = [text.decode() for text in self._all("id")]
        self.samples.label = lambda row: f"sample '{ids[row]}'"
        self.samples.require_files(self.samples.kinds)
        self.sizes = np.concatenate([self.samples.read_arrays("size", rows) for rows in self._blocks()])  # [n, 6]
        self.records = self._records(ids)
        self.texts = self._table(root, TEXTS) if "texts" in self.samples else None
        if self.texts is not None:
            self.texts.require_files(self.texts.kinds)

    @property
    def holds(self) -> frozenset[str]:
        """What the store can fill of a batch: captions, and images, latents and conditioning as they were written."""
        columns = {"image": "images", "latents": "latents", "texts": "conditioning"}
        return frozenset({"captions", *(name for column, name in columns.items() if column in self.samples)})

    @cached_property
    def text_rows(self) -> list[dict[str, int]]:
        """For each sample, the row of its conditioning by caption key."""
        return [json.loads(text) for text in self._all("texts")]

    def images(self, rows: Sequence[int]) -> list[bytes]:
        """Return the encoded pictures of these rows."""
        return self.samples.read_bytes("image", rows)

    def latents(self, rows: Sequence[int]) -> list[Tensor]:
        """Return the latents of these rows, [C, h, w] each, in the dtype they are stored in."""
        return list(torch.from_numpy(self.samples.read_arrays("latents", rows)))

    def conditioning(self, texts: Sequence[int]) -> list[Conditioning]:
        """Return the conditioning in these rows of the texts, a batch of one each, in the dtype it is stored in."""
        table = cast(Table, self.texts)
        parts = {name: torch.from_numpy(table.read_arrays(name, texts)) for name in table.kinds}
        tokens, pooled, bias = parts["tokens"], parts["pooled"], parts.get("key_bias")
        rows = [slice(i, i + 1) for i in range(len(texts))]
        return [Conditioning(tokens[row], pooled[row], None if bias is None else bias[row]) for row in rows]

    def _records(self, ids: list[str]) -> list[SampleRecord]:
        keys = [name.removeprefix(CAPTION) for name in self.samples.kinds if name.startswith(CAPTION)]
        captions = [[text.decode() for text in self._all(CAPTION + key)] for key in keys]
        records = []
        for row, (id, tags) in enumerate(zip(ids, self._all("tags"), strict=True)):
            height, width = self.sizes[row, :2].tolist()
            texts = {key: column[row] for key, column in zip(keys, captions, strict=True) if column[row]}
            records.append(SampleRecord(id, (height, width), texts, json.loads(tags)))
        return records

    def _all(self, column: str) -> list[bytes]:
        return [text for rows in self._blocks() for text in self.samples.read_bytes(column, rows)]

    def _blocks(self) -> list[range]:
        return [range(start, min(start + _BLOCK, self.count)) for start in range(0, self.count, _BLOCK)]

    def _table(self, root: zarr.Group, name: str) -> Table:
        try:
            group: Any = root[name]
        except UNREADABLE as error:
            raise DataError(
                f"{self.path}/{name}/zarr.json is missing or damaged; restore or rebuild the store"
            ) from error
        return Table(group, self.path / name)


def _open(path: Path) -> zarr.Group:
    if not path.is_dir():
        raise DataError(f"{path} is not a store: there is no such folder")
    if not (path / "zarr.json").is_file():
        raise DataError(f"{path} is not a store: it has no zarr.json")
    try:
        return zarr.open_group(path, mode="r", zarr_format=3)
    except UNREADABLE as error:
        raise DataError(f"{path}/zarr.json is damaged or not a zarr v3 group: {error!r}") from error
