"""What a text encoder's numbers depend on, as one digest."""

from __future__ import annotations

import hashlib
import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from kolors_kernel import discover
from kolors_kernel.errors import WeightsError
from kolors_weights.places import HubPlace, Place
from kolors_weights.reading import find_file

if TYPE_CHECKING:
    from kolors_kernel.kinds import TextEncoderConfig

FORMAT = 1
"""The version of the form in which results are kept."""
_WHOLE = 4 * 2**20  # files up to this size are read whole: configs, tokenizers, indexes
_SAMPLES, _SAMPLE = 64, 2**14  # of larger ones, so many pieces of so many bytes
_TOKENIZER_BESIDE = "tokenizer"  # where the released layouts have it when it is not with the encoder


def identity(config: TextEncoderConfig, *, dtype: str, seed: int) -> str:
    """Return a digest of the code, the settings, the dtype and the files that an encoder's results come from.

    Where the settings name no file, weights may be random, and torch's seed counts too. Raises WeightsError when a
    file cannot be read.
    """
    places: list[Place] = []

    def plainly(value: object) -> object:
        if isinstance(value, BaseModel):
            return dict(value)
        if isinstance(value, Path | HubPlace):
            places.append(value)
            return _contents(value) if isinstance(value, Path) else _commit(value)
        return str(value)

    settings = json.dumps(config, sort_keys=True, default=plainly)
    parts = [FORMAT, _code(config), settings, dtype, None if places else seed]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _code(config: TextEncoderConfig) -> str:
    """Return the class and the version of the distribution it comes from, if it is an installed component."""
    registry, cls = discover(), type(config)
    plugin = registry.provided_by.get((config.kind, config.type))
    release = version(registry.plugins[plugin].distribution) if plugin else "not installed"
    return f"{cls.__module__}.{cls.__qualname__} {release}"


def _commit(place: HubPlace) -> str:
    """Return a place with what the Hub's cache calls the state of its repository, which never changes."""
    file = find_file(place, "config.json")
    if file is None:
        raise WeightsError(f"{place} has no config.json, so a cache cannot tell which state of it is used")
    return f"{place.repo}/{place.folder} of {file.as_posix().rpartition('/snapshots/')[2]}"


def _contents(place: Path) -> list[object]:
    """Return what is known of a file by itself, or of an encoder's folder, named by itself or by its weights."""
    alone = place.is_file() and not (place.parent / "config.json").is_file()
    folder = place.parent if place.is_file() else place
    try:
        files = [place] if alone else sorted(file for file in folder.rglob("*") if file.is_file())
        beside = [] if alone else sorted((folder.parent / _TOKENIZER_BESIDE).glob("*.*"))
        named = place.name if place.is_file() else ""
        return [named, *(_file(file, os.path.relpath(file, folder)) for file in (*files, *beside))]
    except OSError as error:
        raise WeightsError(f"{place} cannot be read: {error}") from error


def _file(file: Path, name: str) -> list[object]:
    """Return name, size, time of the last change and a digest: of a large file it is one of samples.

    They are its ends, where headers and a pickle's checksums are, and pieces at even distances.
    """
    found, state = hashlib.sha256(), file.stat()
    with file.open("rb", buffering=0) as content:
        if state.st_size <= _WHOLE:
            found.update(content.read())
        else:
            for number in range(_SAMPLES):
                content.seek((state.st_size - _SAMPLE) * number // (_SAMPLES - 1))
                found.update(content.read(_SAMPLE))
    return [name, state.st_size, state.st_mtime_ns, found.hexdigest()]
