"""The checksum that follows every chunk and every index, as a reader compares it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, cast

import google_crc32c
import numpy as np
from numpy.typing import NDArray

Bytes: TypeAlias = NDArray[np.uint8]
CHECKSUM_BYTES = 4
SEAL = 0x48674BC7
"""The CRC-32C of any bytes followed by their own CRC-32C: one comparison checks both."""

crc32c: Callable[[Bytes], int] = cast(Any, google_crc32c.value)
"""The CRC-32C of contiguous bytes, which are not copied; of all buffers but bytes it takes only numpy's."""
