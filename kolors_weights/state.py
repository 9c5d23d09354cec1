"""A checkpoint's tensors, mapped from its files and read when they are touched."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kolors_kernel.errors import WeightsError
from kolors_weights import paging

_DAMAGE = (OSError, OverflowError, RuntimeError, ValueError, struct.error)


class State(Mapping[str, Tensor]):
    """The tensors of a checkpoint by key, on the CPU in the dtype they were stored in.

    They are mapped: shapes and dtypes are known at once, and a tensor's bytes are read from the file when they are
    touched. They are for reading; the file may be replaced or deleted meanwhile, but not overwritten in place.
    """

    def __init__(self, tensors: Mapping[str, Tensor], files: Mapping[str, Path], *, mapped: Collection[str]) -> None:
        self._tensors, self._files, self._mapped = dict(tensors), dict(files), frozenset(mapped)

    def __getitem__(self, key: str) -> Tensor:
        return self._tensors[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def file(self, key: str) -> Path:
        """Return the file that holds a tensor: the shard, where there are some."""
        return self._files[key]

    def is_mapped(self, key: str) -> bool:
        """Tell whether a tensor is read from its file when it is touched, and not in memory."""
        return key in self._mapped

    def expect(self, key: str) -> None:
        """Have a tensor read ahead, as far as the system can, while other work goes on."""
        if key in self._mapped:
            paging.expect(self._tensors[key])

    def release(self, key: str) -> None:
        """Drop what was read of a tensor from memory; touched again, it is read again."""
        if key in self._mapped:
            paging.release(self._tensors[key])

    def renamed(self, name: Callable[[str], str | None]) -> State:
        """Return the same tensors by the keys that `name` makes of theirs; where it makes None, one is left out."""
        old = {new: key for key in self if (new := name(key)) is not None}
        return State(
            {new: self[key] for new, key in old.items()},
            {new: self._files[key] for new, key in old.items()},
            mapped={new for new, key in old.items() if key in self._mapped},
        )

    def updated(self, tensors: Mapping[str, Tensor], *, where: Path) -> State:
        """Return these tensors with others added, or in their place, that are in memory and came of `where`."""
        files = {**self._files, **dict.fromkeys(tensors, where)}
        return State({**self._tensors, **tensors}, files, mapped=self._mapped - tensors.keys())


def map_safetensors(file: Path) -> State:
    """Return the tensors of a safetensors file. Raises WeightsError when its header does not describe its bytes."""
    try:
        with safe_open(file, "pt") as content:
            tensors = {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118  (no iterator)
    except (SafetensorError, OSError, ValueError, RuntimeError, AttributeError) as error:
        raise WeightsError(f"{file} is not a complete safetensors file: {error}") from error
    return State(tensors, dict.fromkeys(tensors, file), mapped=tensors)


def map_pickle(file: Path) -> State:
    """Return the tensors of a pickle; no code in it is run.

    Those of torch before 1.6, and compressed ones, cannot be mapped and are read. Raises WeightsError when the file
    is damaged or holds more than tensors.
    """
    mapped = _can_be_mapped(file)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{file} is damaged or holds more than tensors, perhaps code, and is refused; save it as safetensors"
        ) from error
    # A damaged pickle fails wherever its reader happens to notice: a list of what random damage was seen to raise.
    except (*_DAMAGE, AssertionError, AttributeError, EOFError, LookupError, TypeError) as error:
        raise WeightsError(f"{file} is not a complete file of weights: {error}") from error
    if not isinstance(state, dict) or not all(_is_plain(tensor) for tensor in state.values()):
        raise WeightsError(f"{file} should be a mapping from names to tensors and nothing else")
    tensors = {str(key): tensor.detach() for key, tensor in state.items()}
    return State(tensors, dict.fromkeys(tensors, file), mapped=tensors if mapped else ())


def _is_plain(value: object) -> bool:
    return isinstance(value, Tensor) and value.device.type == "cpu" and value.layout == torch.strided


def _can_be_mapped(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
    except (zipfile.BadZipFile, *_DAMAGE):
        return False  # the reader says what is wrong with it


def join(shards: Mapping[Path, State], wanted: Mapping[str, Path], *, index: Path) -> State:
    """Return the tensors of all shards as the index has them, `wanted` from keys to shards.

    Raises WeightsError when a shard holds other keys than the index says.
    """
    for shard, state in shards.items():
        listed = {key for key, place in wanted.items() if place == shard}
        for keys, said in ((listed - state.keys(), "lacks"), (state.keys() - listed, "holds besides")):
            if keys:
                some = ", ".join(sorted(keys)[:6])
                raise WeightsError(f"{shard} is not what {index.name} says: it {said} {len(keys)} keys, as {some}")
    mapped = {key for state in shards.values() for key in state if state.is_mapped(key)}
    return State({key: shards[shard][key] for key, shard in wanted.items()}, wanted, mapped=mapped)
