"""The smallest collections, for contracts and documentation: three pictures of 8 to 12 pixels with captions."""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from functools import lru_cache
from io import BytesIO
from pathlib import Path

from PIL import Image

from kolors_zarr.tiny import temporary_path

NAMES = ("red", "green", "blue")


@lru_cache(maxsize=1)
def tiny_folder() -> Path:
    """Return a folder with the pictures and their captions beside them."""
    folder = temporary_path()
    folder.mkdir()
    for name, data in _pictures().items():
        (folder / f"{name}.png").write_bytes(data)
        (folder / f"{name}.txt").write_text(f"A {name} square.", encoding="utf-8")
    return folder


@lru_cache(maxsize=1)
def tiny_tar() -> Path:
    """Return a tar of that folder."""
    path = temporary_path().with_suffix(".tar")
    with tarfile.open(path, "w") as tar:
        tar.add(tiny_folder(), ".")
    return path


@lru_cache(maxsize=1)
def tiny_listing() -> Path:
    """Return a CSV beside the pictures."""
    rows = "".join(f"{name}.png,A {name} square.\n" for name in NAMES)
    path = tiny_folder() / "tiny.csv"
    path.write_text(f"path,caption\n{rows}", encoding="utf-8")
    return path


@lru_cache(maxsize=1)
def tiny_parquet() -> Path:
    """Return a parquet file of the pictures."""
    from pyarrow import Table
    from pyarrow.parquet import write_table

    path = temporary_path().with_suffix(".parquet")
    write_table(Table.from_pydict(_columns()), path)
    return path


@lru_cache(maxsize=1)
def tiny_hugging_face() -> Path:
    """Return a folder with the pictures as the library `datasets` saves them."""
    import datasets

    path = temporary_path()
    datasets.Dataset.from_dict(_columns()).save_to_disk(path)
    return path


def _columns() -> dict[str, list[object]]:
    return {"image": list(_pictures().values()), "caption": [f"A {name} square." for name in NAMES]}


def _pictures() -> Mapping[str, bytes]:
    made = {}
    for name, size in zip(NAMES, ((8, 8), (12, 8), (8, 12)), strict=True):
        encoded = BytesIO()
        Image.new("RGB", size, name).save(encoded, "PNG")
        made[name] = encoded.getvalue()
    return made
