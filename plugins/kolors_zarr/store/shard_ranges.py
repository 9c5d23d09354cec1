"""Chunks of shards elsewhere: ranges of objects, neighbours in one request, several requests at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial

from kolors_zarr.store.checksums import Bytes
from kolors_zarr.store.damage import ShardError, unreadable
from kolors_zarr.store.layout import ABSENT
from kolors_zarr.store.numbering import Wanted
from kolors_zarr.store.places import Place
from kolors_zarr.store.requests import Requests
from kolors_zarr.store.shards import NO_CHUNK, NO_SHARD, ShardTable, require_size

GAP = 128 * 1024
"""Bytes that nobody asked for are read rather than asked around up to here: a request costs more."""
MOST_OF_A_REQUEST = 4 * 2**20
"""Neighbours are read together up to here; a larger chunk is read by itself."""
_MOST_OF_INDICES = 64 * 2**20


class ShardRanges:
    """The shards of a store at any place. Safe for several threads.

    Each call has up to `requests.at_once` requests of MOST_OF_A_REQUEST bytes on their way or waiting to be used.
    """

    def __init__(self, place: Place, table: ShardTable, requests: Requests) -> None:
        self._place, self._table, self._requests = place, table, requests
        room = max(1, _MOST_OF_INDICES // table.index_bytes)
        self.most_bytes = room * table.index_bytes
        self._index = lru_cache(room)(partial(_read_index, place, table))

    def chunks(self, column: str, wanted: Wanted, faults: dict[int, str]) -> Iterator[tuple[int, Bytes]]:
        """Yield position and bytes of chunks, as `Shards` says."""
        spans = self._spans(column, wanted, faults)
        for span, data in zip(spans, self._requests.answers(self._read, spans), strict=True):
            for position, start, stop in span.chunks:
                if data is None:
                    faults[position] = NO_SHARD
                else:
                    yield position, data[start - span.start : stop - span.start]

    def _spans(self, column: str, wanted: Wanted, faults: dict[int, str]) -> list[_Span]:
        """Return what to ask for: the chunks of each shard in their order, close ones together."""
        shards = sorted({shard for _, shard, _ in wanted})
        opened = self._requests.answers(partial(self._try_index, column), shards)
        indices = dict(zip(shards, opened, strict=True))
        places: list[tuple[int, int, int, int]] = []
        for position, shard, row in wanted:
            index = indices[shard]
            if isinstance(index, ShardError):
                faults[position] = str(index)
            elif index[2 * row] == ABSENT:
                faults[position] = NO_CHUNK
            else:
                places.append((shard, index[2 * row], index[2 * row] + index[2 * row + 1], position))
        spans: list[_Span] = []
        latest = -1
        for shard, start, stop, position in sorted(places):
            if shard != latest or not spans[-1].takes(start, stop):
                spans.append(_Span(self._table.key(column, shard), start))
                latest = shard
            spans[-1].add(position, start, stop)
        return spans

    def _try_index(self, column: str, shard: int) -> memoryview | ShardError:
        try:
            return self._index(column, shard)
        except ShardError as error:
            return error

    def _read(self, span: _Span) -> memoryview | None:
        try:
            return memoryview(self._place.read_ranges(span.key, [(span.start, span.stop - span.start)])[0])
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unreadable(self._place, span.key, error) from error


@dataclass
class _Span:
    """One request: bytes `start` to `stop` of an object, and (position, start, stop) of the chunks in it."""

    key: str
    start: int
    stop: int = 0
    chunks: list[tuple[int, int, int]] = field(default_factory=list)

    def takes(self, start: int, stop: int) -> bool:
        return start <= self.stop + GAP and max(stop, self.stop) - self.start <= MOST_OF_A_REQUEST

    def add(self, position: int, start: int, stop: int) -> None:
        self.chunks.append((position, start, stop))
        self.stop = max(self.stop, stop)


def _read_index(place: Place, table: ShardTable, column: str, shard: int) -> memoryview:
    key, wanted, checksum = table.expected(column, shard)
    if not wanted:
        return table.no_chunks
    try:
        require_size(place.size(key), wanted)
        tail = place.read_ranges(key, [(wanted - table.index_bytes, table.index_bytes)])[0]
    except FileNotFoundError as error:
        raise ShardError(NO_SHARD) from error
    except OSError as error:
        raise unreadable(place, key, error) from error
    return table.index(tail, checksum)
