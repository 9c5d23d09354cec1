"""Telling the system which pages of a mapped file are wanted soon, and which no longer.

Only for tensors that are mapped: the pages of any other hold the only copy, and releasing them would lose it.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from functools import cache

from torch import Tensor

_PAGE = mmap.PAGESIZE


def expect(tensor: Tensor) -> None:
    """Have the pages of a mapped tensor read ahead, while other work goes on."""
    _advise(tensor, getattr(mmap, "MADV_WILLNEED", None), whole_pages_only=False)


def release(tensor: Tensor) -> None:
    """Drop the pages of a mapped tensor from memory; touched again, they are read from the file again."""
    # Inwards to whole pages: what shares a page with the tensor is not ours to drop.
    _advise(tensor, getattr(mmap, "MADV_DONTNEED", None), whole_pages_only=True)


def _advise(tensor: Tensor, advice: int | None, *, whole_pages_only: bool) -> None:
    call = _madvise()
    if call is None or advice is None or not tensor.numel():
        return
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    end = start + (last + 1) * tensor.itemsize
    if whole_pages_only:
        start, end = -(-start // _PAGE) * _PAGE, end // _PAGE * _PAGE
    else:
        start, end = start // _PAGE * _PAGE, -(-end // _PAGE) * _PAGE
    if end > start:
        call(start, end - start, advice)  # advice: where the system does not take it, nothing is lost


@cache
def _madvise() -> Callable[[int, int, int], int] | None:
    """Return the C library's madvise, or None where there is none."""
    try:
        function = ctypes.CDLL(None).madvise
    except (AttributeError, OSError, TypeError):  # TypeError: Windows has no library without a name
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function
