"""The plan of a store that is being written: which shard each part of a data set becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Self

import numpy as np

from kolors_kernel.errors import DataError
from kolors_kernel.values import Part
from kolors_zarr.store.layout import MOST_SHARD_ROWS, PARTS, group_name
from kolors_zarr.store.manifest import sealed, unsealed
from kolors_zarr.store.places import Place

PLAN = f"{PARTS}/plan.json"


@dataclass(frozen=True)
class Plan:
    """Group and shard of each part by its name, in the store's order; `digest` stands for all there is to the parts."""

    shard_rows: int
    digest: str
    shards: Mapping[str, tuple[str, int]]

    @classmethod
    def of(cls, parts: Sequence[Part], *, shard_rows: int) -> Self:
        """Number the parts of each group in their order, the groups by height and width.

        Raises ValueError for two parts of one name, or one of more samples than a shard has rows, or for more rows than
        a shard may have.
        """
        if not 0 < shard_rows <= MOST_SHARD_ROWS:
            raise ValueError(f"a shard of {shard_rows} rows: need 1 to {MOST_SHARD_ROWS}")
        digest, counts, shards = blake2b(digest_size=16), dict[str, int](), dict[str, tuple[str, int]]()
        for part in sorted(parts, key=lambda part: part.size):
            group = group_name(part.size)
            if len(part.rows) > shard_rows:
                raise ValueError(f"part '{part.name}' has {len(part.rows)} samples, and a shard {shard_rows} rows")
            if part.name in shards:
                raise ValueError(f"two parts are called '{part.name}'")
            shards[part.name] = group, counts.get(group, 0)
            counts[group] = counts.get(group, 0) + 1
            digest.update(f"{part.name}\0{group}\0".encode())
            digest.update(np.asarray(part.rows, "<i8").tobytes())
        return cls(shard_rows, digest.hexdigest(), shards)

    def to_bytes(self) -> bytes:
        """Return the plan as it is stored."""
        return sealed({"shard_rows": self.shard_rows, "digest": self.digest, "shards": list(self.shards.items())})

    @classmethod
    def read(cls, place: Place) -> Self:
        """Read the plan of a place. Raises DataError when nothing is being written there."""
        try:
            found = unsealed(place.read(PLAN), where=f"{place.url}/{PLAN}")
        except FileNotFoundError as error:
            raise DataError(f"no store is being written at {place.url}; ask for its missing parts first") from error
        shards = {name: (group, shard) for name, (group, shard) in found["shards"]}
        return cls(found["shard_rows"], found["digest"], shards)


def begin(place: Place, plan: Plan) -> None:
    """Take an empty place for a store. Raises DataError when there is anything, or comes to be at the same moment."""
    if next(place.keys(""), None) is not None or not place.create(PLAN, plan.to_bytes()):
        raise DataError(f"there is already something at {place.url}; a store is never overwritten, choose a new path")
