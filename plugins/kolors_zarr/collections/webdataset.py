"""Tars in the layout of WebDataset: the files of a sample share their name up to its first dot."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, cast

from PIL.ContainerIO import ContainerIO

from kolors_kernel.errors import DataError
from kolors_zarr.collections.files import PICTURES, files_of, open_file, sidecars, stamp_of, values_of
from kolors_zarr.collections.inputs import Entry, Fields, Input

Members = dict[str, tuple[int, int]]
"""Offset and bytes of each file of a sample, by ending."""


class Tars:
    """The samples of a tar, or of every tar below a folder, by tar and key; nothing is unpacked.

    Where an input is: the tar, the place of its picture, and (ending, offset, bytes) of each file with its texts.
    """

    def __init__(self, path: Path, fields: Fields) -> None:
        self.path, self.fields = path, fields
        self.tars = dict(files_of(path, ".tar"))
        self.beside = sidecars(fields.names)

    def inputs(self) -> Iterator[Input]:
        """List the samples of each tar by key; what is no sample, or a tar that breaks off, is among them."""
        for name, path in self.tars.items():
            try:
                stamp = stamp_of(path.stat())
                with open_file(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
                    samples, problems = _samples(tar, file)
            except (tarfile.TarError, DataError) as error:
                yield Input(name, problem=f"not a tar that can be read: {error}")
                continue
            for key in sorted({*samples, *problems}):
                where = (name, *self._where(samples.get(key, {})))
                problem = problems.get(key) or _problem(samples[key])
                yield Input(f"{name}/{key}" if key else name, () if problem else where, stamp, problem)

    def _where(self, members: Members) -> tuple[object, ...]:
        pictures = [place for ending, place in members.items() if ending in PICTURES]
        return (*pictures[:1], *((ending, *members[ending]) for ending in self.beside if ending in members))

    def open(self, each: Input) -> BinaryIO:
        """Return the picture's stretch of the tar."""
        tar, (offset, length), *_ = each.where
        return cast(BinaryIO, ContainerIO(open_file(self.tars[tar]), offset, length))

    def read(self, each: Input) -> Entry:
        """Read the picture and the files with its texts."""
        tar, picture, *beside = each.where
        with open_file(self.tars[tar]) as file:
            files = {ending: _stretch(file, offset, length) for ending, offset, length in beside}
            return self.fields.entry(_stretch(file, *picture), values_of(files, self.fields.names))


def _samples(tar: tarfile.TarFile, file: BinaryIO) -> tuple[dict[str, Members], dict[str, str]]:
    """Return the files of each sample, and what is wrong with some, by key; with the tar itself, by none."""
    samples: dict[str, Members] = {}
    problems: dict[str, str] = {}
    with suppress(tarfile.TarError):
        for member in tar:
            folder, slash, name = member.name.removeprefix("./").rpartition("/")
            stem, dot, ending = name.partition(".")
            key, ending = folder + slash + stem, (dot + ending).lower()
            if member.isdir() or not stem:
                continue
            if not member.isreg() or member.issparse():
                problems[key] = f"its {ending} is a link or another special file"
            elif ending in samples.setdefault(key, {}):
                problems[key] = f"it has two {ending} files; keys must be unique in a tar"
            else:
                samples[key][ending] = (member.offset_data, member.size)
    file.seek(tar.offset)
    if file.read(512) != bytes(512):  # tarfile may stop without a word; a tar that is whole ends with zeros
        problems[""] = f"the tar is damaged or cut off at byte {tar.offset}; what is before it is used"
    return samples, problems


def _problem(members: Mapping[str, object]) -> str:
    pictures = [ending for ending in members if ending in PICTURES]
    if len(pictures) == 1:
        return ""
    return f"it has {len(pictures)} pictures among {', '.join(sorted(members))}, and must have one"


def _stretch(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    data = file.read(length)
    if len(data) < length:
        raise DataError(f"the tar ends after {len(data)} of the {length} bytes of one of its files")
    return data
