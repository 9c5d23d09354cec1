"""A shuffle of any number of things that needs no memory: ask it for the indices you want, and only for those."""

from __future__ import annotations

from hashlib import blake2b
from math import isqrt

import numpy as np
from numpy.typing import NDArray

MOST = 1 << 62
"""The largest number of things that can be permuted: half of its bits are multiplied by 32 of a hash."""
_HALF = np.uint64(32)
_FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)


def key_of(seed: int, epoch: int, what: str, number: int = 0) -> bytes:
    """Return the key of one of the permutations of an epoch, 64 bytes; no two of them have anything in common."""
    return blake2b(f"{seed} {epoch} {what} {number}".encode(), person=b"kolors order").digest()


class Permutation:
    """A keyed permutation of the numbers below `n`, computed where it is asked for in time and memory of the answer.

    A number is split into two digits, `n` being about the square of each one's range; in each round one digit in
    turn is rotated by a hash of the other and of the key (a Feistel network). The digits can say a few numbers that
    are not below `n`: from such a one the network is followed on until it comes back (cycle walking).

    Raises ValueError unless 0 <= n <= 2^62 and the key has 64 bytes.
    """

    def __init__(self, n: int, key: bytes) -> None:
        if not 0 <= n <= MOST or len(key) != 64:
            raise ValueError(f"a permutation of {n} with a key of {len(key)} bytes: need 0 <= n <= 2^62 and 64 bytes")
        self.n = n
        # An even range: rotating an odd one is an even permutation, and there would be no odd ones of nine things.
        high = isqrt(max(n - 1, 0)) + 1
        high += high % 2
        self._high, self._low = np.uint64(high), np.uint64(max(-(-n // high), 1))
        # Digits of two or three values mix slowly: with 8 rounds some orders of five things are 10% too frequent.
        self._rounds = range(8 if n >= 4096 else 16)
        self._keys = np.frombuffer(key, dtype="<u4").astype(np.uint64)

    def at(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers at these places of the shuffled order, int64 in the shape of `indices`.

        Raises ValueError for an index outside 0 <= index < n.
        """
        return self._walk(indices, self._rounds)

    def index_of(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Invert `at`: return the places of these numbers, int64 in the shape of `numbers`; raises as `at` does."""
        return self._walk(numbers, self._rounds[::-1])

    def _walk(self, start: NDArray[np.int64], rounds: range) -> NDArray[np.int64]:
        if start.size and (start.min() < 0 or start.max() >= self.n):
            raise ValueError(f"{start.min()} to {start.max()} is not inside a permutation of {self.n}")
        now = self._network(start.astype(np.uint64), rounds)
        outside = now >= self.n
        while outside.any():
            now[outside] = self._network(now[outside], rounds)
            outside = now >= self.n
        return now.astype(np.int64)

    def _network(self, numbers: NDArray[np.uint64], rounds: range) -> NDArray[np.uint64]:
        high = numbers // self._low
        low = numbers - high * self._low
        for i in rounds:
            digit, other, size = (high, low, self._high) if i % 2 == 0 else (low, high, self._low)
            turn = _below(size, other + self._keys[i])
            # Unsigned: what a digit is too small for wraps around to a huge number, and the smaller of both is right.
            if rounds.step > 0:
                digit += turn
                np.minimum(digit, np.subtract(digit, size, out=turn), out=digit)
            else:
                digit -= turn
                np.minimum(digit, np.add(digit, size, out=turn), out=digit)
        return high * self._low + low


def _below(size: np.uint64, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hash values, in place, to numbers below `size`: two multiplications, then the upper half scaled."""
    values *= _FIRST
    values ^= values >> _HALF
    values *= _SECOND
    values >>= _HALF
    values *= size
    values >>= _HALF
    return values
