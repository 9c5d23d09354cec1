"""Writing checkpoints: a file replaces an older one only when it is complete."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from kolors_kernel.errors import RunError


def write_state(folder: Path, state: Mapping[str, Tensor], config: Mapping[str, Any], *, stem: str) -> None:
    """Write `folder`/config.json and `folder`/STEM.safetensors; each replaces an older one only when complete.

    Raises RunError naming the file when the disk is full or not writable; what was there before stays.
    """
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    write_file(folder / f"{stem}.safetensors", lambda file: save_file(tensors, file, metadata={"format": "pt"}))
    write_file(folder / "config.json", lambda file: file.write_text(text, encoding="utf-8"))


def write_file(target: Path, fill: Callable[[Path], object]) -> None:
    """Have `fill` write a temporary file beside `target`, then put it in its place: all of it or nothing.

    Raises RunError naming the file when the disk is full or not writable; what was there before stays.
    """
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        temporary = Path(name)
        os.close(handle)
        fill(temporary)
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)  # mkstemp makes it private to its owner
        os.replace(temporary, target)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{target} could not be written: {error}; what was there before is unchanged") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
