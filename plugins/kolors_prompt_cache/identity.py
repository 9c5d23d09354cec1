"""What a text encoder's numbers depend on, as one digest."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kolors_kernel import discover
from kolors_kernel.errors import WeightsError

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
    files: list[Any] = []

    def contents(value: object) -> object:
        if not isinstance(value, Path):
            return str(value)
        files.append(value)
        return _contents(value)

    settings = json.dumps(config.model_dump(), sort_keys=True, default=contents)
    parts = [FORMAT, _code(config), settings, dtype, None if files else seed]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _code(config: TextEncoderConfig) -> str:
    """Return the class and the version of the distribution it comes from, if it is an installed component."""
    registry, cls = discover(), type(config)
    plugin = registry.provided_by.get((config.kind, config.type))
    release = version(registry.plugins[plugin].distribution) if plugin else "not installed"
    return f"{cls.__module__}.{cls.__qualname__} {release}"


def _contents(place: Path) -> list[list[object]]:
    """Return name, size, time of the last change and digest of a file, or of all files of an encoder's folder."""
    try:
        if place.is_file():
            return [_file(place, place.name)]
        inside = sorted(file for file in place.rglob("*") if file.is_file())
        beside = sorted(file for file in (place.parent / _TOKENIZER_BESIDE).glob("*") if file.is_file())
        return [_file(file, file.relative_to(place.parent).as_posix()) for file in (*inside, *beside)]
    except OSError as error:
        raise WeightsError(f"{place} cannot be read: {error}") from error


def _file(file: Path, name: str) -> list[object]:
    """Sample a large file: its ends, where headers and a pickle's checksums are, and pieces at even distances."""
    found, state = hashlib.sha256(), file.stat()
    with file.open("rb", buffering=0) as content:
        if state.st_size <= _WHOLE:
            found.update(content.read())
        else:
            for number in range(_SAMPLES):
                content.seek((state.st_size - _SAMPLE) * number // (_SAMPLES - 1))
                found.update(content.read(_SAMPLE))
    return [name, state.st_size, state.st_mtime_ns, found.hexdigest()]
