"""The first pass: every input gets a bucket or a reason, a piece of the list at a time; finished pieces are kept."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

from kolors_zarr.collections.inputs import Input
from kolors_zarr.importing.progress import counted
from kolors_zarr.importing.steps import Verdicts
from kolors_zarr.store.manifest import sealed, unsealed
from kolors_zarr.store.places import Place, writing

if TYPE_CHECKING:
    from kolors_kernel.protocols import Workers

PIECE = 1024
"""Inputs that a worker looks at in one go."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Piece:
    """A stretch of the list, which is the `number`-th."""

    number: int
    inputs: Sequence[Input]

    def __str__(self) -> str:
        return f"the headers of '{self.inputs[0].name}' to '{self.inputs[-1].name}'"


def fingerprint(settings: Mapping[str, object], inputs: Sequence[Input]) -> str:
    """Return a name for a list of inputs and what is made of it; it changes when any of that does."""
    digest = blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8)
    for each in inputs:
        digest.update(repr(tuple(each)).encode())
    return digest.hexdigest()


def scan(
    inputs: Sequence[Input], workers: Workers, *, make: Callable[[], Callable[[Piece], Verdicts]], kept: Place
) -> Verdicts:
    """Return the bucket of every input, or why it is refused; pieces that are in `kept` are not looked at again.

    Raises RunError when the place cannot be written.
    """
    pieces = [Piece(i, inputs[start : start + PIECE]) for i, start in enumerate(range(0, len(inputs), PIECE))]
    with writing(kept, left="what is finished stays for the next run"):
        there = set(kept.keys(""))
        found = {piece.number: _read(kept, piece.number) for piece in pieces if _key(piece.number) in there}
        missing = [piece for piece in pieces if piece.number not in found]
        if found:
            logger.info("%d of %d pieces of the list were looked at before", len(found), len(pieces))
        for piece, verdicts in counted(workers.map(make, missing), len(missing), "looked at pieces of the list"):
            kept.write(_key(piece.number), sealed({"verdicts": verdicts}))
            found[piece.number] = verdicts
    return [verdict for piece in pieces for verdict in found[piece.number]]


def _read(kept: Place, number: int) -> Verdicts:
    key = _key(number)
    verdicts = unsealed(kept.read(key), where=f"{kept.url}/{key}")["verdicts"]
    return [each if isinstance(each, str) else (each[0], each[1]) for each in verdicts]


def _key(number: int) -> str:
    return f"{number}.json"
