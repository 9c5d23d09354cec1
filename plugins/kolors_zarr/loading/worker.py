"""What runs in a worker process of `kolors_zarr.loading.processes`. Nothing here may import torch."""

from __future__ import annotations

import mmap
import pickle
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from kolors_kernel.errors import KolorsError
from kolors_zarr.loading.ring import Fill, Memory


def serve(link: int, memory: int, slots: int, slot_bytes: int) -> None:
    """Fill slots as told through the pipe `link` until it is closed. Both it and the memory are open files."""
    pipe, memories = Connection(link), mapped(memory, slots, slot_bytes)
    try:
        fill: Fill = pickle.loads(pipe.recv())
        while True:
            pipe.send([_done(fill, job, memories[place]) for place, job in pipe.recv()])
    except (EOFError, ConnectionError):
        return  # whoever wanted the batches is gone


def _done(fill: Fill, job: Any, memory: Memory) -> Any:
    try:
        return fill(job, memory)
    except KolorsError as error:
        return error


def mapped(memory: int, slots: int, slot_bytes: int) -> list[Memory]:
    """Return the slots in a file of memory."""
    whole = np.frombuffer(mmap.mmap(memory, slots * slot_bytes), np.uint8)
    return list(whole.reshape(slots, slot_bytes))
