"""Where weights are: a local folder or file, or a place on the Hugging Face Hub that is fetched when it is read."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeAlias

from pydantic import WrapSerializer, WrapValidator

from kolors_kernel.component import ExistingPath

_SCHEME = "hf://"
_FORM = "hf://OWNER/REPO[@REVISION][/FOLDER]"
_PATTERN = re.compile(
    r"hf://(?P<repo>[\w.-]+/[\w.-]+)"
    r"(@(?P<revision>refs/(pr|convert)/[^/@]+|[^/@]+))?"  # the Hub's pull requests are the only ones with slashes
    r"(/(?P<folder>[^@]*))?"
)


@dataclass(frozen=True)
class HubPlace:
    """A folder, or a file, of a repository on the Hugging Face Hub; its text is hf://OWNER/REPO[@REVISION][/FOLDER]."""

    repo: str
    revision: str | None = None
    folder: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the place that the text names. Raises ValueError when it has another form."""
        found = _PATTERN.fullmatch(text)
        folder = ((found and found["folder"]) or "").strip("/")
        if found is None or ".." in folder.split("/"):
            raise ValueError(f"{text} is not of the form {_FORM}")
        return cls(found["repo"], found["revision"], folder)

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{_SCHEME}{self.repo}{revision}/{self.folder}".rstrip("/")

    def __truediv__(self, name: str) -> HubPlace:
        return HubPlace(self.repo, self.revision, posixpath.normpath(posixpath.join(self.folder, name)))

    @property
    def name(self) -> str:
        """The last part of its path, without the folders it is in."""
        return posixpath.basename(self.folder)

    @property
    def suffix(self) -> str:
        """What a file's name ends with, and a folder's may not."""
        return posixpath.splitext(self.folder)[1]

    @property
    def parent(self) -> HubPlace:
        """The folder that this one, or this file, is in."""
        return HubPlace(self.repo, self.revision, posixpath.dirname(self.folder))


Place: TypeAlias = Path | HubPlace
"""What a setting of type WeightsPath holds."""


def _parsed(value: object, local: Callable[[object], Path]) -> Place:
    if isinstance(value, HubPlace):
        return value
    return HubPlace.parse(value) if isinstance(value, str) and value.startswith(_SCHEME) else local(value)


def _written(value: Place, local: Callable[[Path], Any]) -> Any:
    return str(value) if isinstance(value, HubPlace) else local(value)


if TYPE_CHECKING:
    WeightsPath: TypeAlias = Path | HubPlace
else:
    WeightsPath = Annotated[ExistingPath, WrapValidator(_parsed), WrapSerializer(_written), f"or {_FORM}"]
"""A setting: a local folder or file that exists, relative to the recipe that says it, or a place on the Hub.

A recipe that is written down keeps the text of a place on the Hub.
"""
