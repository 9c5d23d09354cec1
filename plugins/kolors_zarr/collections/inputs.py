"""What a collection is: a list of inputs, each of which can be read alone in any process."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple, Protocol

from kolors_kernel.errors import DataError


class Input(NamedTuple):
    """One thing that may become a sample.

    `name` is the sample's id; `where` is what its collection finds it by; `stamp` changes when its bytes do.
    `problem` says why it cannot be used, where the list alone tells.
    """

    name: str
    where: tuple[Any, ...] = ()
    stamp: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Entry:
    """An input that was read: the encoded picture as it is, its captions by key, its tags."""

    image: bytes
    captions: Mapping[str, str]
    tags: Mapping[str, str]


class Collection(Protocol):
    """Kind collection. What is wrong with one input is a DataError that need not name it; OSError is for the rest."""

    def inputs(self) -> Iterator[Input]:
        """List everything, always in the same order. Raises DataError where there is nothing to list."""

    def open(self, each: Input) -> BinaryIO:
        """Return the encoded picture as a file to seek in, of which most often only the beginning is read."""

    def read(self, each: Input) -> Entry:
        """Return the picture with its captions and tags."""


@dataclass(frozen=True)
class Fields:
    """Which names of a collection hold captions and tags, and tags that are the same for all of it."""

    captions: Mapping[str, str]
    tags: Mapping[str, str]
    constant_tags: Mapping[str, str]

    @property
    def names(self) -> list[str]:
        """Every name that is read, once."""
        return sorted({*self.captions.values(), *self.tags.values()})

    def entry(self, image: bytes, values: Mapping[str, Any]) -> Entry:
        """Return an entry of what the names hold; a name without a value, or an empty one, gives nothing.

        Raises DataError for a value that is neither a text nor a number.
        """
        return Entry(image, _texts(self.captions, values), {**self.constant_tags, **_texts(self.tags, values)})


def _texts(names: Mapping[str, str], values: Mapping[str, Any]) -> dict[str, str]:
    found = {key: _text(values.get(name), name) for key, name in names.items()}
    return {key: text for key, text in found.items() if text}


def _text(value: Any, name: str) -> str:
    if value is None or value != value:  # a table's gaps come as NaN, which equals nothing
        return ""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:  # JSON can spell half of a pair
            raise DataError(f"its '{name}' is not Unicode: {error.reason}") from error
        return value.strip()
    if isinstance(value, int | float):
        return json.dumps(value)
    raise DataError(f"its '{name}' is a {type(value).__name__}, and must be a text or a number")
