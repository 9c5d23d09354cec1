"""Which launches are compiled: those that the ops plan for their samples, each distinct one once, in two processes."""

from __future__ import annotations

import io
import math
import os
import pkgutil
import resource
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from benchmarks.aot.figures import Figures
from benchmarks.aot.probe import TARGETS, Noted, figures, noted

if TYPE_CHECKING:
    from kolors_ops.operators import Launch
    from kolors_ops.table import Row

FAMILIES = tuple(TARGETS)
DTYPES = ("float32", "float16", "bfloat16")
LIMIT = 120.0
"""Seconds of CPU for one launch; ours take one."""


@dataclass(frozen=True)
class Place:
    """Where a launch is found again in another process: whose sample, which of its launches, planned for what."""

    module: str
    """Has `samples(dtype)`."""
    dtype: str
    family: str
    sample: int
    launch: int


@dataclass(frozen=True)
class Planned:
    """One launch to be compiled; its `noted.identity` is equal where Triton compiles two once."""

    place: Place
    shape: str
    kernel: str
    row: Row
    noted: Noted
    programs: int
    """Of its grid."""
    largest: int
    """Elements of the largest tensor that it sees."""

    @property
    def op(self) -> str:
        """The op's name: that of the folder of its module."""
        return self.place.module.split(".")[-2]


@dataclass(frozen=True)
class Unplanned:
    """A sample for which there is no row, and which one there is not."""

    place: Place
    shape: str
    reason: str


def op_modules() -> list[str]:
    """Return the modules of the ops that have samples: kolors_ops.geglu.op and so on."""
    import kolors_ops

    folders = [f"kolors_ops.{m.name}" for m in pkgutil.iter_modules(kolors_ops.__path__) if m.ispkg]
    found = [f"{folder}.op" for folder in folders if find_spec(f"{folder}.op") is not None]
    return [name for name in found if hasattr(import_module(name), "samples")]


def planned(
    modules: Sequence[str], dtypes: Sequence[str] = DTYPES, families: Sequence[str] = FAMILIES
) -> Iterator[Planned | Unplanned]:
    """Yield every launch of every sample, the families of one launch after another."""
    for module in modules:
        for dtype in dtypes:
            for number, (shape, _) in enumerate(_samples(module, dtype)):
                for family in families:
                    yield from _of_sample(Place(module, dtype, family, number, 0), shape)


def _of_sample(place: Place, shape: str) -> Iterator[Planned | Unplanned]:
    try:
        launches = _launches(place.module, place.dtype, place.family, place.sample)
    except ValueError as reason:
        yield Unplanned(place, shape, str(reason))
        return
    for number, launch in enumerate(launches):
        seen = noted(launch.kernel, launch.options(), place.family)
        here = Place(place.module, place.dtype, place.family, place.sample, number)
        sizes = [int(each.numel()) for each in launch.arguments.values() if hasattr(each, "numel")]
        yield Planned(
            here, shape, launch.kernel.__name__, launch.row, seen, math.prod(launch.grid), max(sizes, default=0)
        )


def compiled(
    launches: Iterable[Planned], *, cache_dir: str, processes: int = 2, limit: float = LIMIT
) -> Iterator[tuple[Planned, Figures | str]]:
    """Compile every distinct launch once, and yield each with its figures, or with why it does not compile.

    One that takes more than `limit` seconds of CPU in Triton, or in the assembler, is given up.
    """
    wanted = list(launches)
    distinct = {each.noted.identity: each.place for each in wanted}
    started = ProcessPoolExecutor(processes, get_context("spawn"), initializer=_start, initargs=(cache_dir,))
    with started as pool:
        found = {name: pool.submit(figures_at, place, limit) for name, place in distinct.items()}
        try:
            for each in wanted:
                yield each, found[each.noted.identity].result()
        except GeneratorExit:
            pool.shutdown(cancel_futures=True)
            raise


def figures_at(place: Place, limit: float = LIMIT) -> Figures | str:
    """Compile the launch that stands there, in this process; return its figures, or why it does not compile."""
    from triton.errors import TritonError

    launch = _launches(place.module, place.dtype, place.family, place.sample)[place.launch]
    try:
        # Triton prints the whole program when an assembler fails.
        with redirect_stdout(io.StringIO()), _at_most(limit):
            return figures(launch.kernel, launch.options(), place.family)
    except TimeoutError as error:
        return str(error)
    except (TritonError, RuntimeError, ValueError, MemoryError) as error:
        if f"error code -{signal.SIGXCPU.value}" in str(error):
            return _given_up(limit)
        said = [line for line in f"{type(error).__name__}: {error}".splitlines() if line.strip()]
        return " ".join(said[:1] + said[-1:] if len(said) > 1 else said)


@contextmanager
def _at_most(limit: float) -> Iterator[None]:
    """Raise TimeoutError after so many seconds of this process; the assembler is ended some time after as many."""

    def give_up(number: int, frame: object) -> None:
        raise TimeoutError(_given_up(limit))

    before, (soft, hard) = signal.signal(signal.SIGXCPU, give_up), resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time() + limit), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))
        signal.signal(signal.SIGXCPU, before)


def _given_up(limit: float) -> str:
    return f"given up after {limit:g} seconds of CPU"


def _start(cache_dir: str) -> None:
    os.environ["TRITON_CACHE_DIR"] = cache_dir
    import torch

    torch.set_num_threads(1)


@cache
def _samples(module: str, dtype: str) -> list[tuple[str, Any]]:
    import torch

    return [(each.shape, each.plan) for each in import_module(module).samples(getattr(torch, dtype))]


def _launches(module: str, dtype: str, family: str, sample: int) -> Sequence[Launch]:
    from kolors_ops.operators import pick_from

    _, plan = _samples(module, dtype)[sample]
    launches: Sequence[Launch] = plan(pick_from("", family))
    return launches
