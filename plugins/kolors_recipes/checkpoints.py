"""Checkpoints of a training run: one folder each, there whole or not at all, safetensors and a JSON state."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from kolors_kernel.errors import RecipeError, RunError, WeightsError

if TYPE_CHECKING:
    from torch import Tensor

STATE = "state.json"


def write_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], *, keep: int
) -> Path:
    """Write the tensors (file by file) and the state as `folder`/STEP, then drop all but the newest `keep`.

    The folder appears under its name only once it is complete; on a full disk the earlier ones stay and RunError
    says so.
    """
    final = folder / f"{step:08d}"
    temporary = folder / ".partial"
    try:
        if temporary.exists():  # left by a run that was killed while it wrote
            shutil.rmtree(temporary)
        temporary.mkdir(parents=True)
        for name, group in tensors.items():
            save_file({key: value.contiguous() for key, value in group.items()}, temporary / f"{name}.safetensors")
        (temporary / STATE).write_text(json.dumps(state), encoding="utf-8")
        if final.exists():  # the same step again, after a run went on from an earlier one
            shutil.rmtree(final)
        temporary.rename(final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise RunError(f"cannot write the checkpoint {final}: {error}; earlier checkpoints are untouched") from error
    for old in _complete(folder)[:-keep]:
        shutil.rmtree(old)
    return final


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other runs out of `folder` for a while. Raises RecipeError when one is there; a killed one is not."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise RecipeError(f"another run is writing to {folder}; wait for it, or choose another --out") from None


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint, or None."""
    return next(reversed(_complete(folder)), None)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Return the JSON state of a checkpoint."""
    try:
        return dict(json.loads((checkpoint / STATE).read_text(encoding="utf-8")))
    except ValueError as error:
        raise WeightsError(
            f"{checkpoint / STATE} is damaged: {error}; remove the folder to go on from the one before"
        ) from error


def read_tensors(checkpoint: Path, name: str) -> dict[str, Tensor]:
    """Return one file of tensors of a checkpoint. Raises WeightsError when it is damaged."""
    path = checkpoint / f"{name}.safetensors"
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} is damaged: {error}; remove {checkpoint} to go on from the one before") from error


def refuse_other_recipe(written: Mapping[str, Any], now: Mapping[str, Any], out: Path, *, finished: int) -> None:
    """Raise RecipeError when a run of another recipe lies in `out`.

    More steps than before are the same run, but not in the first `finished` stages: those are over.
    """
    differing = _differences(written, now, "")
    pairs = zip(written["stages"][:finished], now["stages"], strict=False)
    differing += [f"stages.{i}.steps" for i, (was, new) in enumerate(pairs) if was["steps"] != new["steps"]]
    if differing:
        raise RecipeError(
            f"{out} holds a run of another recipe; it differs at {', '.join(differing[:5])}. "
            "Choose another --out, or remove that folder"
        )


_LOADING = ("batch", "threads", "processes", "path")
RESUMABLE = frozenset(
    {"stages.*.steps", "stages.*.samples", "observers", "checkpoint_every", "keep", "log_every", "device"}
    | {f"stages.*.data.{setting}" for setting in _LOADING}
)
"""Settings that may change between a run and its continuation: the steps that were done stay as they are.

Of these only `steps` can have had a say in them, through the learning rate of a stage whose decay is cosine. Another
`batch` plans the rest of the epoch anew, and another `path` must lead to the same store.
"""


def _differences(one: Any, other: Any, at: str) -> list[str]:
    """Return the dotted keys at which two resolved recipes differ, those of RESUMABLE left out."""
    if ".".join("*" if part.isdigit() else part for part in at.split(".")) in RESUMABLE:
        return []
    if isinstance(one, dict) and isinstance(other, dict):
        keys = dict.fromkeys([*one, *other])
        return [d for key in keys for d in _differences(one.get(key), other.get(key), f"{at}.{key}".lstrip("."))]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [d for i, (a, b) in pairs for d in _differences(a, b, f"{at}.{i}")]
    return [] if one == other else [at]


def _complete(folder: Path) -> list[Path]:
    return sorted(each for each in folder.glob("[0-9]*") if (each / STATE).is_file())
