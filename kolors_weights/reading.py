"""Finding and reading checkpoints.

A folder holds `config.json` and the weights, as safetensors or as a pickle of plain tensors, in one file or in shards
under an index. torch and safetensors are imported inside the functions, since settings read `config.json` by this.
"""

from __future__ import annotations

import json
from os.path import normpath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kolors_kernel.errors import WeightsError
from kolors_weights.places import HubPlace, Place

if TYPE_CHECKING:
    from kolors_weights.state import State

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_ENDINGS = (".safetensors", ".fp16.safetensors", ".bin", ".fp16.bin")
_INDEX_ENDINGS = (*(f"{e}.index.json" for e in _ENDINGS), ".safetensors.index.fp16.json", ".bin.index.fp16.json")


def read_config(place: Place) -> dict[str, Any]:
    """Return what the config.json in a folder, or beside a file, says.

    Raises WeightsError when it is absent or not a JSON object.
    """
    file = find_file(place, "config.json")
    if file is not None:
        return _read_json(file)
    if find_file(place, "model_index.json"):
        raise WeightsError(
            f"{place} is a whole model and has no config.json: name the folder of the part that is meant, "
            f"{place}/text_encoder, {place}/unet or {place}/vae"
        )
    raise WeightsError(f"{place} has no config.json")


def find_weights(place: Place, *stems: str) -> Path:
    """Return the file of weights, or the index of its shards, that `place` is or that is called by a stem in it.

    Full precision comes before fp16, and safetensors before pickles. Of a place on the Hub what was found is fetched,
    all shards of it and no other variant. Raises WeightsError when there is none.
    """
    if _is_file(place):
        named = [place.name]
    else:
        named = [f"{stem}{ending}" for stem in stems for ending in (*_ENDINGS, *_INDEX_ENDINGS)]
    file = find_file(place, *named)
    if file is None:
        raise WeightsError(
            f"{place} has no weights: looked for {', '.join(stems)} with {', '.join(_ENDINGS)} or an index"
        )
    if isinstance(place, HubPlace) and file.suffix == ".json":
        for name in sorted(set(_shard_names(file).values())):
            find_file(place, name)  # one that is missing is missed when the index is read
    return file


def find_file(place: Place, *names: str) -> Path | None:
    """Return the first of the files that is in the folder, or beside the file, `place`; None when there is none.

    A name may lead out of the folder, as in ../tokenizer/tokenizer.model.
    """
    folder = place.parent if _is_file(place) else place
    if isinstance(folder, HubPlace):
        from kolors_weights.hub import find_on_hub

        return find_on_hub(folder, names)
    return next((Path(normpath(folder / name)) for name in names if (folder / name).is_file()), None)


def _is_file(place: Place) -> bool:
    return place.suffix in (".safetensors", ".json", *_PICKLES) if isinstance(place, HubPlace) else place.is_file()


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
    names = _shard_names(file)
    for name in set(names.values()):
        if not (file.parent / name).is_file():
            raise WeightsError(f"{file} names the shard {name!r}, which is not in {file.parent}")
    return {key: file.parent / name for key, name in names.items()}


def _shard_names(file: Path) -> dict[str, str]:
    names = _read_json(file).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise WeightsError(f"{file} is no index of shards: it has no 'weight_map' from keys to file names")
    for name in names.values():
        if Path(name).name != name or name.endswith(".json"):  # an index of indices could name itself
            raise WeightsError(f"{file} names the shard {name!r}, which is no file of weights in {file.parent}")
    return names


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{file} should hold a JSON object, not {type(content).__name__}")
    return content
