"""Checkpoints: found in a folder, read with care, fitted to a module strictly, written all or nothing.

A folder holds `config.json` and the weights, as safetensors or as a pickle of plain tensors, in one file or in shards
under an index. torch and safetensors are imported inside the functions: this module costs nothing until used.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kolors_kernel.errors import RunError, WeightsError

if TYPE_CHECKING:
    from torch import Tensor, nn

_ENDINGS = (".safetensors", ".fp16.safetensors", ".bin", ".fp16.bin")
_INDEX_ENDINGS = (*(f"{e}.index.json" for e in _ENDINGS), ".safetensors.index.fp16.json", ".bin.index.fp16.json")
_LISTED = 6  # keys named per complaint; the rest are counted


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


@contextmanager
def without_weights() -> Iterator[None]:
    """Make modules of shapes alone, on the meta device, to be given their weights by `fit`.

    Their initial weights are not drawn: on that device drawing is pointless, and its first use costs a second.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    class NotDrawing(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if getattr(func, "__module__", None) == "torch.nn.init":
                return (kwargs or {}).get("tensor", args[0] if args else None)
            return func(*args, **(kwargs or {}))

    with torch.device("meta"), NotDrawing():
        yield


def fit(module: nn.Module, state: Mapping[str, Tensor], *, where: Path) -> None:
    """Give `module`, which may be on the meta device, the tensors of `state` as they are: dtype and all.

    Raises WeightsError listing every missing, extra and misshapen key of `where`; the module is then unchanged.
    """
    wanted = module.state_dict()
    problems = {
        "missing": [key for key in wanted if key not in state],
        "extra": [key for key in state if key not in wanted],
        "misshapen": [
            f"{key} is {_shape(state[key])}, should be {_shape(tensor)}"
            for key, tensor in wanted.items()
            if key in state and _shape(state[key]) != _shape(tensor)
        ],
    }
    said = [f"{len(keys)} {name}: {_some(keys)}" for name, keys in problems.items() if keys]
    if said:
        raise WeightsError(f"{where} does not fit the model; {'; '.join(said)}")
    module.load_state_dict(dict(state), strict=True, assign=True)


def write_state(folder: Path, state: Mapping[str, Tensor], config: Mapping[str, Any], *, stem: str) -> None:
    """Write `folder`/config.json and `folder`/STEM.safetensors; each replaces an older one only when complete.

    Raises RunError naming the file when the disk is full or not writable; what was there before stays.
    """
    from safetensors.torch import save_file

    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    write_file(folder / f"{stem}.safetensors", lambda file: save_file(tensors, file, metadata={"format": "pt"}))
    write_file(folder / "config.json", lambda file: file.write_text(text, encoding="utf-8"))


def write_file(target: Path, fill: Callable[[Path], object]) -> None:
    """Have `fill` write a temporary file beside `target`, then put it in its place: all of it or nothing.

    Raises RunError naming the file when the disk is full or not writable; what was there before stays.
    """
    from safetensors import SafetensorError

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


def _shape(tensor: Tensor) -> str:
    return f"{list(tensor.shape)}" if tensor.is_floating_point() else f"{list(tensor.shape)} of {tensor.dtype}"


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:_LISTED]) + (f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else "")
