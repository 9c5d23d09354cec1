"""The folder of a prompt cache: a file for each prompt, whole or not there at all."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from kolors_kernel.errors import RunError
from kolors_weights.writing import write_file

logger = logging.getLogger(__name__)
_ABOUT = "kolors_prompt_cache"  # the one piece of metadata: safetensors puts several in any order
_OURS = re.compile(r"\.?[0-9a-f]{64}\.safetensors(\..+)?")  # and what a writer that was killed left


@dataclass(frozen=True)
class Entry:
    """What one prompt was encoded to, on the CPU: tokens [L, D], pooled [P], key bias [L] or None; and the warnings."""

    tokens: Tensor
    pooled: Tensor
    key_bias: Tensor | None
    said: tuple[str, ...] = ()


class Entries:
    """Entries by key in a folder that several processes may share, of at most `keep` bytes."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self.damaged = 0

    def find(self, key: str) -> Entry | None:
        """Return the entry of this key, or None; a damaged one is named in the log and as good as absent.

        Raises RunError when there is one that cannot be read.
        """
        file = self._file(key)
        try:
            content = file.read_bytes()  # not mapped: a file that is cut short while it is mapped ends the process
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RunError(f"the cached prompt {file} cannot be read: {error}") from error
        try:
            entry = _parse(content, key)
        except (SafetensorError, ValueError, LookupError, TypeError) as error:
            self.damaged += 1
            logger.warning("the cached prompt %s is damaged and will be encoded again: %s", file, error)
            return None
        with suppress(OSError):  # its last use; a folder that may only be read keeps none
            os.utime(file)
        return entry

    def put(self, key: str, prompt: str, entry: Entry) -> None:
        """Keep an entry, in place of one that may be there. Raises RunError when it cannot be written."""
        tensors = _tensors(entry)
        about = {
            "prompt": prompt.encode(errors="replace").decode(),  # for who opens the file; the key stands for it
            "said": entry.said,
            "digest": _digest(key, tensors, entry.said),
        }
        content = save(tensors, {_ABOUT: json.dumps(about, ensure_ascii=False)})
        write_file(self._file(key), lambda file: file.write_bytes(content))

    def prune(self) -> None:
        """Remove the entries that were not asked for longest, until the rest takes at most `keep` bytes."""
        files = []
        for file in self.folder.iterdir():
            with suppress(FileNotFoundError):  # another process prunes too
                if _OURS.fullmatch(file.name):
                    files.append((file.stat().st_mtime_ns, file.stat().st_size, file))
        excess = sum(size for _, size, _ in files) - self.keep
        for _, size, file in sorted(files):
            if excess <= 0:
                return
            file.unlink(missing_ok=True)
            excess -= size

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


def _parse(content: bytes, key: str) -> Entry:
    tensors = load(content)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    about = json.loads(header["__metadata__"][_ABOUT])
    if about["digest"] != _digest(key, tensors, about["said"]):
        raise ValueError("its checksum is not the one of its contents")
    return Entry(tensors["tokens"], tensors["pooled"], tensors.get("key_bias"), tuple(about["said"]))


def _tensors(entry: Entry) -> dict[str, Tensor]:
    named = {"tokens": entry.tokens, "pooled": entry.pooled, "key_bias": entry.key_bias}
    return {name: tensor.contiguous() for name, tensor in named.items() if tensor is not None}


def _digest(key: str, tensors: dict[str, Tensor], said: Sequence[str]) -> str:
    found = hashlib.sha256(json.dumps([key, said]).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
