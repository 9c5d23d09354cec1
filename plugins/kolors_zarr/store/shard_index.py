"""The index at the end of a shard as a reader uses it, and the checksum that guards every chunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, cast

import google_crc32c
import numpy as np
from numpy.typing import NDArray

Bytes: TypeAlias = NDArray[np.uint8]
SEAL = 0x48674BC7
"""The CRC-32C of any bytes followed by their own CRC-32C: one comparison checks both."""

crc32c: Callable[[Bytes], int] = cast(Any, google_crc32c.value)
"""The CRC-32C of contiguous bytes, which are not copied; of all buffers but bytes it takes only numpy's."""


def checked_index(data: Bytes, checksum: int) -> memoryview | None:
    """Return offset and length of inner chunk i at 2 i and 2 i + 1, or None where the index is not the right one.

    `data` ends with the index's checksum, and `checksum` is what the store's index says it is. Nothing is copied.
    """
    if crc32c(data) != SEAL or crc32c(data[:-4]) != checksum:
        return None
    return data[:-4].data.cast("Q")
