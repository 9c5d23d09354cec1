"""The process that one loader is measured in: it answers each line on stdin with a line of JSON.

`python -m benchmarks.loaders.measured '{"module": ..., "setting": {...}, "store": ...}'`; the commands are "write",
"check" and "round".
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, cast

import torch

from benchmarks.loaders.batch import Epochs, Setting
from benchmarks.loaders.check import Check
from benchmarks.loaders.source import Source
from benchmarks.loaders.usage import cpu_seconds, memory


class Peer(Protocol):
    """What a module of this package offers that can be measured."""

    packages: Sequence[str]
    """The distributions it runs on, whose versions are reported."""

    def write(self, setting: Setting, store: Path) -> None:
        """Fill the empty folder `store` with the samples, in the library's own format."""

    def epochs(self, store: Path, setting: Setting) -> Epochs:
        """Construct the loader."""


def write(peer: Peer, store: Path, setting: Setting) -> Mapping[str, float]:
    """Write the store, whole or not at all."""
    part = store.with_name(store.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    peer.write(setting, part)
    part.rename(store)
    return {}


def check(peer: Peer, store: Path, setting: Setting) -> Mapping[str, Any]:
    """Look at every sample of two epochs; the figures are of the second."""
    epochs = peer.epochs(store, setting)
    counts = []
    for number in range(2):
        counts.append(Check(Source(setting.source), setting.task))
        for batch in epochs(number):
            counts[-1].take(batch)
    return {**counts[1].figures(), "reordered": counts[0].numbers != counts[1].numbers}


def measure(peer: Peer, store: Path, setting: Setting, seconds: float) -> Mapping[str, float]:
    """Construct the loader, let one epoch go by, time whole epochs for at least `seconds`, and weigh it in one more."""
    start = time.perf_counter()
    epochs = peer.epochs(store, setting)
    batches = epochs(0)
    next(batches)
    first = time.perf_counter() - start
    half = sum(1 for _ in batches) // 2
    samples, number = 0, 1
    cpu, start = cpu_seconds(), time.perf_counter()
    while (wall := time.perf_counter() - start) < seconds or number == 1:
        samples += sum(len(batch.original) for batch in epochs(number))
        number += 1
    cpu = cpu_seconds() - cpu
    figures = {"first_ms": first * 1e3, "cpu_us": cpu / samples * 1e6, "samples_s": samples / wall}
    for place, _ in enumerate(epochs(number)):
        if place == half:
            figures.update(memory())
    return figures


def main() -> None:
    """Answer commands until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    job = json.loads(sys.argv[1])
    setting = Setting(**{**job["setting"], "source": Path(job["setting"]["source"])})
    torch.set_num_threads(1)

    def answer(said: Mapping[str, Any]) -> None:
        answers.write(json.dumps(said) + "\n")
        answers.flush()

    try:
        peer = cast(Peer, importlib.import_module(f"benchmarks.loaders.{job['module']}"))
    except ModuleNotFoundError as error:
        return answer({"missing": error.name})
    answer({"versions": ", ".join(f"{name} {version(name)}" for name in peer.packages)})
    commands: dict[str, Callable[..., Mapping[str, Any]]] = {"write": write, "check": check, "round": measure}
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        found = commands[name](peer, Path(job["store"]), setting, *arguments)
        gc.collect()  # workers of a loader in a cycle end now, and not in the turn of another
        answer(found)


if __name__ == "__main__":
    main()
