"""The list of what was left out of a store, a line of JSON each."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from kolors_kernel.errors import DataError
from kolors_zarr.store.damage import REMEDY, read_needed
from kolors_zarr.store.layout import REFUSED
from kolors_zarr.store.manifest import Manifest
from kolors_zarr.store.places import Place


@dataclass(frozen=True)
class Refused:
    """An input that is left out of a store, and why."""

    input: str
    reason: str


def lines_of(refused: Iterable[Refused]) -> bytes:
    """Return the list as it is stored."""
    return "".join(json.dumps(asdict(each), ensure_ascii=False) + "\n" for each in refused).encode()


def refused_of(place: Place, manifest: Manifest) -> list[Refused]:
    """Return the inputs that a store's writer left out. Raises DataError when their list is missing or damaged."""
    if not manifest.refused:
        return []
    try:
        found = [Refused(**json.loads(line)) for line in read_needed(place, REFUSED).splitlines()]
    except (ValueError, TypeError) as error:
        raise DataError(f"{place.url}/{REFUSED} is damaged: {error}; {REMEDY}") from error
    if len(found) != manifest.refused:
        raise DataError(
            f"{place.url}/{REFUSED} has {len(found)} lines, and the manifest says {manifest.refused}; {REMEDY}"
        )
    return found
