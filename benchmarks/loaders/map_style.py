"""Loading by number, shared by every library that can be asked for any rows: a sampler of whole batches of numbers and
torch's DataLoader, which hands each to the library at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from benchmarks.loaders.batch import Batch, Epochs, Setting
from benchmarks.loaders.source import Array, Source


class Reader(Protocol):
    """An open store of one library."""

    def read(self, numbers: Array) -> Batch:
        """Return the samples of these numbers, in any order."""


class Order(Sampler[Array]):
    """The numbers of each batch of an epoch, a new permutation in each; for pictures that are decoded, of one size."""

    def __init__(self, setting: Setting) -> None:
        self.epoch = 0
        self.size = setting.size
        sizes = Source(setting.source).sizes
        kinds = sizes @ (1, 1 << 16) if setting.task == "decoded" else np.zeros(len(sizes))
        self.members = [np.flatnonzero(kinds == kind) for kind in np.unique(kinds)]

    def __iter__(self) -> Iterator[Array]:
        random = np.random.default_rng(self.epoch)
        batches = []
        for members in self.members:
            batches += np.split(random.permutation(members), range(self.size, len(members), self.size))
        return (batches[place] for place in random.permutation(len(batches)))

    def __len__(self) -> int:
        return sum(-(-len(numbers) // self.size) for numbers in self.members)


class Batches(Dataset[Batch]):
    """A library's reader as a data set whose items are whole batches; opened where it is used, after any fork."""

    def __init__(self, open_reader: Callable[[], Reader]) -> None:
        self.open_reader = open_reader
        self.reader: Reader | None = None

    def __getitem__(self, numbers: Array) -> Batch:
        if self.reader is None:
            self.reader = self.open_reader()
        return self.reader.read(numbers)


def epochs(open_reader: Callable[[], Reader], setting: Setting, *, context: str = "fork") -> Epochs:
    """Return the loader of a reader; `context` is how the workers start. `open_reader` must be picklable for spawn."""
    order = Order(setting)
    loader = dataloader(Batches(open_reader), setting, sampler=order, context=context)

    def epoch(number: int) -> Iterator[Batch]:
        order.epoch = number
        return iter(loader)

    return epoch


def dataloader(
    dataset: Dataset[Batch], setting: Setting, *, sampler: Order | None = None, context: str = "fork"
) -> DataLoader[Batch]:
    """Return torch's loader of items that are batches already."""
    own: dict[str, Any] = {"persistent_workers": True, "multiprocessing_context": context} if setting.workers else {}
    return DataLoader(
        dataset, batch_size=None, sampler=sampler, collate_fn=as_it_is, num_workers=setting.workers, **own
    )


def as_it_is(batch: Any) -> Any:
    """Return the batch; torch's own conversion would look at every caption."""
    return batch
