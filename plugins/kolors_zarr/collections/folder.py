"""A folder of pictures, each with its texts in files beside it: `cat.jpg`, `cat.txt`, `cat.json`."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from kolors_kernel.errors import DataError
from kolors_zarr.collections.files import PICTURES, inside, open_file, sidecars, stamp_of, values_of
from kolors_zarr.collections.inputs import Entry, Fields, Input

logger = logging.getLogger(__name__)


class ImageFolder:
    """The pictures of a folder and of the folders in it, by their paths; where an input is: the endings beside it."""

    def __init__(self, path: Path, fields: Fields) -> None:
        self.path, self.fields = path, fields
        self.beside = sidecars(fields.names)

    def inputs(self) -> Iterator[Input]:
        """List a folder's pictures in the order of their names, then its folders; say what was passed over.

        Raises DataError when the folder cannot be listed or holds no picture.
        """
        passed, count = Counter[str](), 0
        for each in self._below("", passed):
            count += 1
            yield each
        if passed:
            kinds = ", ".join(f"{count} {ending or 'without an ending'}" for ending, count in sorted(passed.items()))
            logger.info("passed over what is neither a picture nor beside one in %s: %s", self.path, kinds)
        if not count:
            raise DataError(f"there is no picture in {self.path}: no file ends in {', '.join(sorted(PICTURES))}")

    def _below(self, folder: str, passed: Counter[str]) -> Iterator[Input]:
        try:
            with os.scandir(self.path / folder) as found:
                entries = {each.name: each for each in sorted(found, key=lambda each: each.name)}
        except (PermissionError, NotADirectoryError) as error:
            if not folder:
                raise DataError(f"{self.path} cannot be listed: {error.strerror}") from error
            yield Input(folder, problem=f"the folder cannot be listed: {error.strerror}")
            return
        folders = [name for name, each in entries.items() if each.is_dir()]
        used = set(folders)
        for name in entries:
            if PurePosixPath(name).suffix.lower() in PICTURES and name not in used and not name.startswith("."):
                stem = name[: name.rindex(".")]
                beside = [ending for ending in self.beside if stem + ending in entries]
                used |= {name, *(stem + ending for ending in beside)}
                yield self._input(folder + name, beside)
        passed.update(PurePosixPath(name).suffix.lower() for name in entries if name not in used)
        for name in folders:
            if entries[name].is_symlink():
                yield Input(folder + name, problem="a link to a folder is not followed; bring the pictures here")
            else:
                yield from self._below(f"{folder}{name}/", passed)

    def _input(self, name: str, beside: list[str]) -> Input:
        paths = [name, *(name[: name.rindex(".")] + ending for ending in beside)]
        try:
            return Input(name, tuple(beside), stamp_of(*(os.stat(self.path / path) for path in paths)))
        except OSError as error:
            return Input(name, problem=f"{error.filename} cannot be used: {error.strerror}")

    def open(self, each: Input) -> BinaryIO:
        """Open the picture."""
        return open_file(inside(self.path, each.name))

    def read(self, each: Input) -> Entry:
        """Read the picture and what is beside it."""
        stem, files = each.name[: each.name.rindex(".")], {}
        for ending in each.where:
            with open_file(inside(self.path, stem + ending)) as file:
                files[ending] = file.read()
        with self.open(each) as file:
            return self.fields.entry(file.read(), values_of(files, self.fields.names))
