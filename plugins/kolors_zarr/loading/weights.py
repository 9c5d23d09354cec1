"""How much each sample counts in the loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kolors_kernel.errors import DataError
from kolors_zarr.loading.selection import Bucket
from kolors_zarr.store.layout import MOST_VALUES, TAG, is_key
from kolors_zarr.store.reading import Store

_LOOKED_AT = 256
"""Samples in which a tag is looked for that the index lacks."""


class Weights:
    """Every sample counts 1, or with a tag to `balance` by, every value of the tag counts the same.

    N samples with C values weigh N / (C * n), n being how many share a sample's value: 1 on average. Raises DataError
    when the store's index lacks the tag, or a selected sample does.
    """

    def __init__(self, store: Store, buckets: Sequence[Bucket], *, balance: str | None) -> None:
        self._store, self._column = store, None if balance is None else TAG + balance
        if balance is None:
            return
        if balance not in store.manifest.tags:
            raise DataError(f"{store.place.url} cannot be balanced by '{balance}': {_reason_for_none(store, balance)}")
        codes = store.column(TAG + balance)
        counts = sum(np.bincount(codes[_index(bucket)], minlength=1 + codes.max(initial=0)) for bucket in buckets)
        assert not isinstance(counts, int)
        if counts[0]:
            raise DataError(
                f"{counts[0]} of the selected samples of {store.place.url} have no tag '{balance}' to balance by"
            )
        share = counts.sum() / np.count_nonzero(counts)
        self._by_code = np.divide(share, counts, out=np.zeros(len(counts)), where=counts > 0)

    def of(self, numbers: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the weights of samples of these numbers."""
        if self._column is None:
            return np.ones(len(numbers))
        weights: NDArray[np.float64] = self._by_code[self._store.rows(self._column, numbers)]
        return weights


def _reason_for_none(store: Store, tag: str) -> str:
    """Say why the index has not a tag: because some of the first samples have it all the same, or none does."""
    if any(tag in record.tags for record in store.records(range(min(_LOOKED_AT, store.samples)))):
        too_many = f"it has more than {MOST_VALUES:,} values"
        return too_many if is_key(tag) else "a name in the index is of letters, digits and _.-"
    return f"its index has the tags {', '.join(store.manifest.tags) or 'none'}"


def _index(bucket: Bucket) -> slice | NDArray[np.integer]:
    numbers = bucket.numbers
    return slice(numbers.start, numbers.stop) if isinstance(numbers, range) else numbers
