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

    from kolors_weights.state import State

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
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


def open_state(file: Path) -> State:
    """Return the tensors of one file, or of all shards of an index, mapped: nothing is read before it is touched.

    A pickle is opened without running anything. Raises WeightsError naming the file that is damaged, is missing, is
    of no known kind, or holds more than tensors, and the shard that is not what its index says.
    """
    from kolors_weights import state

    if file.suffix == ".safetensors":
        return state.map_safetensors(file)
    if file.suffix in _PICKLES:
        return state.map_pickle(file)
    if file.suffix != ".json":
        known = ", ".join((".safetensors", *_PICKLES, ".json (an index of shards)"))
        raise WeightsError(f"{file} is of no kind that is read here, which are {known}")
    wanted = read_index(file)
    shards = {shard: open_state(shard) for shard in sorted(set(wanted.values()))}
    return state.join(shards, wanted, index=file)


def read_index(file: Path) -> dict[str, Path]:
    """Return the shard that holds each key. Raises WeightsError when a shard is not in the folder of the index."""
    names = _read_json(file).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise WeightsError(f"{file} is no index of shards: it has no 'weight_map' from keys to file names")
    for name in set(names.values()):
        if Path(name).name != name or not (file.parent / name).is_file():
            raise WeightsError(f"{file} names the shard {name!r}, which is not in {file.parent}")
    return {key: file.parent / name for key, name in names.items()}


def read_state(file: Path) -> dict[str, Tensor]:
    """Return the tensors of `open_state` as a plain dict."""
    return dict(open_state(file))


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{file} should hold a JSON object, not {type(content).__name__}")
    return content
