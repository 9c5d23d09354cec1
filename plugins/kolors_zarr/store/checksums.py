"""The checksum that follows every chunk and every index."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, cast

from fastcrc import crc32

Bytes: TypeAlias = bytes | memoryview
CHECKSUM_BYTES = 4
SEAL = 0x48674BC7
"""The CRC-32C of any bytes followed by their own CRC-32C: one comparison checks both."""

crc32c = cast(Callable[[Bytes], int], crc32.iscsi)
"""The CRC-32C of contiguous bytes, which are not copied; other threads run meanwhile."""
