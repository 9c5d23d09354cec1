"""The smallest store, for contracts and documentation."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from io import BytesIO
from pathlib import Path

from PIL import Image

from kolors_kernel.values import Sample, SampleRecord
from kolors_zarr.store.writing import write_store


def temporary_path() -> Path:
    """Return a path at which there is nothing, in a new folder that is removed when the process ends."""
    folder = tempfile.mkdtemp(prefix="kolors-zarr-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder) / "tiny.zarr"


@lru_cache(maxsize=1)
def tiny_store() -> Path:
    """Write six plain pictures of 8 pixels with captions to a temporary store, once in a process."""
    path = temporary_path()
    write_store(path, _samples(), shard_rows=4)
    return path


def _samples() -> Iterator[Sample]:
    for zh, en in (("红", "red"), ("绿", "green"), ("蓝", "blue"), ("黄", "yellow"), ("黑", "black"), ("白", "white")):
        encoded = BytesIO()
        Image.new("RGB", (8, 8), en).save(encoded, "PNG")
        captions = {
            "zh_original": zh,
            "en_original": en,
            "zh_synthetic": f"一个{zh}色的方块。",
            "en_synthetic": f"A {en} square.",
        }
        yield Sample(SampleRecord(en, (8, 8), captions, {"split": "train"}), image=encoded.getvalue())
