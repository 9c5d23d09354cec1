"""Writing a store: samples to rows of its tables, published whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import zarr

from kolors_kernel.errors import DataError, RunError
from kolors_kernel.values import Conditioning, Sample
from kolors_zarr.layout import ATTRIBUTE, CAPTION, SAMPLES, TEXTS, manifest
from kolors_zarr.table_writer import Array, TableWriter, Value

if TYPE_CHECKING:
    from torch import Tensor

_NO_ROOM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "a file grew too large",
}
_NO_PLACE = (errno.EROFS, errno.EACCES, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ENAMETOOLONG)


class ZarrStoreWriter:
    """Writes a store at `path`, whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, samples: Iterable[Sample]) -> int:
        """Store the samples in their order and return how many there are.

        Everything goes into a hidden folder beside `path`, which is renamed when complete and removed when anything
        fails. Raises DataError when `path` exists or there are no samples, ValueError when the samples do not hold
        the same things, RunError when the disk is full or cannot be written.
        """
        self._require_free()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.", suffix=".partial", dir=self.path.parent))
            try:
                count = _write(folder / "store", samples)
                self._require_free()
                os.rename(folder / "store", self.path)
            finally:
                shutil.rmtree(folder)
        except OSError as error:
            if error.errno not in (*_NO_ROOM, *_NO_PLACE):
                raise
            why = _NO_ROOM.get(error.errno, str(error))
            raise RunError(f"the store {self.path} could not be written: {why}; nothing was left behind") from error
        return count

    def _require_free(self) -> None:
        if self.path.exists():
            raise DataError(
                f"there is already something at {self.path}; a store is never overwritten, choose a new path"
            )


def _write(folder: Path, samples: Iterable[Sample]) -> int:
    root = zarr.create_group(folder, zarr_format=3)
    rows, texts = TableWriter(root.create_group(SAMPLES)), _Texts(root)
    first: Sample | None = None
    for sample in samples:
        first = first or sample
        if _holds(sample) != _holds(first):
            raise ValueError(
                f"sample '{sample.record.id}' holds {_holds(sample)}, but '{first.record.id}' holds {_holds(first)}"
            )
        rows.append(_row_of(sample, texts))
    if first is None:
        raise DataError(f"there are no samples to store in {folder.parent.parent}")
    rows.close()
    texts.close()
    root.attrs[ATTRIBUTE] = manifest(rows.count)
    return rows.count


def _holds(sample: Sample) -> str:
    parts = {"image": sample.image is not None, "latents": sample.latents is not None}
    held = [name for name, there in (parts | {"conditioning": bool(sample.conditioning)}).items() if there]
    return " and ".join(held) or "nothing"


def _row_of(sample: Sample, texts: _Texts) -> dict[str, Value]:
    record = sample.record
    size = sample.size or (*record.size, 0, 0, *record.size)
    if size[:2] != tuple(record.size):
        raise ValueError(f"sample '{record.id}' is {record.size} by its record and {size[:2]} by its size")
    row: dict[str, Value] = {
        "id": record.id.encode(),
        "tags": json.dumps(dict(record.tags), ensure_ascii=False).encode(),
        "size": np.asarray(size, np.int32),
    }
    row |= {CAPTION + key: text.encode() for key, text in record.captions.items()}
    if sample.image is not None:
        row["image"] = sample.image
    if sample.latents is not None:
        row["latents"] = _to_numpy(sample.latents)
    if sample.conditioning:
        row["texts"] = json.dumps({key: texts.row_of(value) for key, value in sample.conditioning.items()}).encode()
    if sample.image is None and sample.latents is None:
        raise ValueError(f"sample '{record.id}' has neither an image nor latents")
    return row


class _Texts:
    """The table of conditionings: each distinct one is written once."""

    def __init__(self, root: zarr.Group) -> None:
        self.root = root
        self.table: TableWriter | None = None
        self.known: dict[bytes, int] = {}

    def row_of(self, conditioning: Conditioning) -> int:
        """Return the row of a conditioning, written now if it is new."""
        if self.table is None:
            self.table = TableWriter(self.root.create_group(TEXTS))
        parts = {"tokens": conditioning.tokens, "pooled": conditioning.pooled, "key_bias": conditioning.key_bias}
        row = {name: _to_numpy(tensor[0]) for name, tensor in parts.items() if tensor is not None}
        content = blake2b(digest_size=16)
        for name, value in row.items():
            content.update(f"{name} {value.dtype} {value.shape}".encode())
            content.update(value.tobytes())
        key = content.digest()
        if key not in self.known:
            self.known[key] = self.table.append(row)
        return self.known[key]

    def close(self) -> None:
        """Finish the table, if there is one."""
        if self.table is not None:
            self.table.close()


def _to_numpy(tensor: Tensor) -> Array:
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in ("float16", "float32"):
        raise ValueError(f"a store keeps float16 or float32, not {name}; convert before writing")
    array: Array = np.ascontiguousarray(tensor.detach().cpu().numpy())
    return array
