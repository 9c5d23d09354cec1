"""How much memory is free for the taking, on the machine, in the control group of a container, and on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

_FILES = {
    # version: the limit, what is used, and the lines of memory.stat that count what is cached and can be given back
    2: ("memory.max", "memory.current", ("active_file", "inactive_file")),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file")),
}


def free_bytes(device: torch.device, *, root: Path = Path("/")) -> int | None:
    """Return how many bytes can still be taken on the device, or None where this system does not say.

    On a CPU that is what Linux calls available, or what the control groups that the process is in leave of their
    limits. `root` is where the system's files are.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What torch holds back and does not use it can give itself.
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    if device.type != "cpu":
        return None
    available = _in_kib(root / "proc/meminfo", "MemAvailable:")
    return None if available is None else min([available, *_left_by_groups(root)])


def _left_by_groups(root: Path) -> Iterator[int]:
    """Yield what each control group with a limit leaves, from the process's own up to the root."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, own = line.split(":", 2)
        version = 1 if "memory" in controllers.split(",") else 2
        if controllers and version == 2:
            continue  # a group of another controller
        top = root / "sys/fs/cgroup" / ("memory" if version == 1 else "")
        folder = top / own.lstrip("/")
        for group in (folder, *folder.parents[: len(folder.relative_to(top).parts)]):
            limit, used, cached = _FILES[version]
            most, taken = _lines(group / limit), _lines(group / used)
            if most and taken and most[0].isdecimal():  # "max" is no limit
                stat = dict(line.split() for line in _lines(group / "memory.stat"))
                yield max(0, int(most[0]) - int(taken[0]) + sum(int(stat.get(name, 0)) for name in cached))


def _in_kib(file: Path, name: str) -> int | None:
    return next((int(line.split()[1]) * 1024 for line in _lines(file) if line.startswith(name)), None)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
