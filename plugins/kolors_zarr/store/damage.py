"""What is wrong with a store: samples that cannot be trusted, by file and chunk, and files that cannot be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kolors_kernel.errors import DataError
from kolors_zarr.store.places import Place

REMEDY = "restore or rebuild the store"
_NAMED = 5
"""How many files, and how many samples of each, a message names before it only counts."""


class ShardError(Exception):
    """Nothing of a shard can be used; says why."""


@dataclass(frozen=True)
class Damage:
    """A sample of which a column cannot be read: its number and, if that can be read, its id; where, and why.

    `key` is the shard's object, `chunk` the row in it.
    """

    number: int
    id: str | None
    key: str
    chunk: int
    why: str

    @property
    def in_words(self) -> str:
        """The sample, and where in its shard it is."""
        return f"{'number ' + str(self.number) if self.id is None else repr(self.id)} in chunk {self.chunk}"


class DamagedSamples(DataError):
    """Samples whose data is missing or damaged; the others that were asked for with them can be read.

    `damages` says of each what is wrong, and `numbers` are theirs.
    """

    def __init__(self, url: str, damages: Sequence[Damage]) -> None:
        self.url, self.damages = url, tuple(damages)
        self.numbers = tuple(damage.number for damage in damages)
        files: dict[tuple[str, str], list[Damage]] = {}
        for damage in damages:
            files.setdefault((damage.key, damage.why), []).append(damage)
        lines = [f"{url}/{key}: {why} ({_samples(those)})" for (key, why), those in files.items()]
        super().__init__("; ".join([*_first(lines), REMEDY]))

    def __reduce__(self) -> tuple[type[DamagedSamples], tuple[str, tuple[Damage, ...]]]:
        return DamagedSamples, (self.url, self.damages)  # an exception is otherwise made anew from its message


def read_needed(place: Place, key: str) -> bytes:
    """Return an object that must be there. Raises DataError when it is not, or cannot be read."""
    try:
        return place.read(key)
    except FileNotFoundError as error:
        raise DataError(f"{place.url}/{key} is missing; {REMEDY}") from error
    except OSError as error:
        raise unreadable(place, key, error) from error


def unreadable(place: Place, key: str, error: OSError) -> DataError:
    """Return what to raise where the system refuses an object that is there."""
    return DataError(f"{place.url}/{key} cannot be read: {error.strerror or error}")


def _samples(damages: Sequence[Damage]) -> str:
    return ("sample " if len(damages) == 1 else "samples ") + ", ".join(_first([each.in_words for each in damages]))


def _first(texts: Sequence[str]) -> list[str]:
    more = [f"{len(texts) - _NAMED} more"] if len(texts) > _NAMED else []
    return [*texts[:_NAMED], *more]
