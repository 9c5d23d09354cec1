"""Memory for batches, used again and again, but never while somebody still looks at it."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Memory: TypeAlias = NDArray[np.uint8]
Fill: TypeAlias = Callable[[Any, Memory], Any]
"""(job, memory for its batch) -> what has to be known to find the batch in the memory."""
CALLER_HOLDS = 2
"""The batches a loop has in its hands: the one it is at, and the one before while the next is being fetched."""


class Slot:
    """Memory for one batch, and its place in a ring if it is in one."""

    def __init__(self, memory: Memory, place: int = -1, free: deque[Slot] | None = None) -> None:
        self.memory, self.place, self._free = memory, place, free

    def lend(self) -> Any:
        """Return the memory to be handed out. When the last view of it is gone, the slot is free again."""
        if self._free is None:
            return self.memory
        lent = self.memory[:]
        weakref.finalize(lent, self._free.append, self).atexit = False
        return lent

    def give_back(self) -> None:
        """Be free again without having been lent."""
        if self._free is not None:
            self._free.append(self)


Filled: TypeAlias = tuple[Any, Slot]


class Ring:
    """Slots that go round: taken to be filled, lent to be looked at, and then free again."""

    def __init__(self, memories: Iterable[Memory]) -> None:
        self._free: deque[Slot] = deque()
        self._free.extend(Slot(memory, place, self._free) for place, memory in enumerate(memories))

    @property
    def free(self) -> int:
        """How many slots are free."""
        return len(self._free)

    def take(self) -> Slot | None:
        """Return a slot to be filled, or None where none is free."""
        return self._free.popleft() if self._free else None
