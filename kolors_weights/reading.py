"""Finding and reading checkpoints.

A folder holds `config.json` and the weights, as safetensors or as a pickle of plain tensors, in one file or in shards
under an index. torch and safetensors are imported inside the functions, since settings read `config.json` by this.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kolors_kernel.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

_ENDINGS = (".safetensors", ".fp16.safetensors", ".bin", ".fp16.bin")
_INDEX_ENDINGS = (*(f"{e}.index.json" for e in _ENDINGS), ".safetensors.index.fp16.json", ".bin.index.fp16.json")


def read_config(folder: Path) -> dict[str, Any]:
    """Return what `folder`/config.json says. Raises WeightsError when it is absent or not a JSON object."""
    return _read_json(folder / "config.json")


def find_weights(folder: Path, *stems: str) -> Path:
    """Return the file of weights, or the index of its shards, called by one of `stems` in `folder`.

    Full precision comes before fp16, and safetensors before pickles. Raises WeightsError when there is none.
    """
    for stem in stems:
        for ending in (*_ENDINGS, *_INDEX_ENDINGS):
            if (folder / f"{stem}{ending}").is_file():
                return folder / f"{stem}{ending}"
    raise WeightsError(f"{folder} has no weights: looked for {', '.join(stems)} with {', '.join(_ENDINGS)} or an index")


def read_state(file: Path) -> dict[str, Tensor]:
    """Return the tensors of one file, or of all shards of an index, on the CPU in the dtype they were stored in.

    A pickle is read without running anything. Raises WeightsError naming the file that is damaged, is missing, or
    holds more than tensors.
    """
    if file.suffix != ".json":
        return _read_safetensors(file) if file.suffix == ".safetensors" else _read_pickle(file)
    shards = _read_json(file).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise WeightsError(f"{file} is no index of shards: it has no 'weight_map' from keys to file names")
    state: dict[str, Tensor] = {}
    for name in sorted(set(shards.values())):
        shard = file.parent / name
        if Path(name).name != name or not shard.is_file():
            raise WeightsError(f"{file} names the shard {name!r}, which is not in {file.parent}")
        state.update(read_state(shard))
    return state


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{file} is not a complete safetensors file: {error}") from error


def _read_pickle(file: Path) -> dict[str, Tensor]:
    import pickle
    import struct

    import torch

    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{file} is damaged or holds more than tensors, perhaps code, and is refused; save it as safetensors"
        ) from error
    # A damaged pickle fails wherever its reader happens to notice; a list of what random damage was seen to raise.
    except (OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AssertionError, struct.error) as error:
        raise WeightsError(f"{file} is not a complete file of weights: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise WeightsError(f"{file} should be a mapping from names to tensors and nothing else")
    return state


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{file} should hold a JSON object, not {type(content).__name__}")
    return content
