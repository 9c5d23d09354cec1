"""Peers' kernels beside ours, at every group norm and attention of the SDXL U-Net: a row for each peer and shape.

`ours` and `peer` are the shares of a GPU's threads that can be resident at once: programs that fit on a multiprocessor,
or that there are at all, on the multiprocessors of the GPU named. Of the kernels that see the whole picture, the least
filling counts; those that only put statistics together are left out of it. Spills are those of all kernels.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version

from benchmarks.aot.figures import Figures
from benchmarks.aot.launches import Planned, Unplanned, compiled, planned
from benchmarks.report import Note, Result, Row

OURS = "benchmarks.aot.peers.ours"
PEERS = {
    "benchmarks.aot.peers.liger": ("Liger-Kernel", "liger_kernel"),
    "benchmarks.aot.peers.flag_gems": ("FlagGems", "flag_gems"),
    "benchmarks.aot.peers.tutorial": ("tutorial", "triton"),
}
"""Modules with samples: the peer's name, and the distribution that its version is of."""
MULTIPROCESSORS = {"sm_80": 108, "sm_89": 128, "sm_90": 132, "sm_100": 148, "sm_120": 170, "gfx942": 304}
"""Of an A100, an RTX 4090, an H100 SXM, a B200, an RTX 5090 and an MI300X."""


@dataclass(frozen=True)
class Whole:
    """What the kernels of one call take together."""

    registers: int
    ctas: int
    spill_stores: int
    spill_loads: int
    local: int
    programs: int
    fill: float
    """The share of the GPU's threads that can be resident."""
    kernels: int
    instructions: int
    wide: float
    """The share of the bytes of global memory that move in accesses of 16 bytes, but for those of words."""

    def remark(self) -> str:
        """Return registers, programs per multiprocessor and spills in words."""
        spills = f"spills {self.spill_stores}/{self.spill_loads}" if self.local or self.spill_stores else "no spills"
        return f"{self.registers} registers, {self.ctas} CTAs, {spills}"


def results(options: argparse.Namespace) -> Iterator[Result]:
    """Compile ours and every peer that is installed, and say of the others how to install them."""
    from benchmarks.aot.peers.inductor import refusal

    reason = refusal() or "it compiles where there is CUDA, and what it makes is not looked at"
    yield Note("aot", "group_norm_silu forward", "beside Inductor", reason)
    modules = [OURS]
    for module, (name, _) in PEERS.items():
        try:
            _needs(module)
            modules.append(module)
        except ModuleNotFoundError as error:
            install = getattr(import_module(module), "INSTALL", "")
            missing = str(error.name).partition(".")[0]
            yield Note("aot", "peers", f"beside {name}", f"{missing} is not installed: {install}")
    made: dict[tuple[str, str, str, str], list[tuple[Planned, Figures]]] = {}
    found = list(planned(modules, options.peer_dtype, options.peer_family))
    for each in found:
        if isinstance(each, Unplanned):
            yield Note("aot", _case(each.shape, each), "triton", each.reason)
    launches = [each for each in found if isinstance(each, Planned)]
    how = {"cache_dir": options.cache, "processes": options.processes, "limit": options.limit}
    for launch, figures in compiled(launches, **how):
        if isinstance(figures, str):
            yield Note("aot", _case(launch.shape, launch), _name(launch), f"{launch.kernel}: {figures}")
        else:
            place = launch.place
            made.setdefault((place.module, launch.shape, place.dtype, place.family), []).append((launch, figures))
    yield from _rows(made)


def _needs(module: str) -> None:
    """Raise ModuleNotFoundError when a peer is not installed."""
    if hasattr(import_module(module), "module"):
        import_module(module).module()


def _rows(made: dict[tuple[str, str, str, str], list[tuple[Planned, Figures]]]) -> Iterator[Row]:
    for (module, shape, dtype, family), kernels in made.items():
        at, direction, *settings = shape.split(" ", 2)
        ours = made.get((OURS, f"{at} {direction}", dtype, family))
        if module == OURS or ours is None:
            continue
        mine, theirs = whole(ours), whole(kernels)
        name, distribution = PEERS[module]
        yield Row(
            "aot",
            f"{at} {direction} {dtype} {family}",
            "triton",
            mine.fill * 100,
            " ".join([name, *settings]),
            theirs.fill * 100,
            "% full",
            mine.fill / theirs.fill,
            extra={
                "shape": at,
                "direction": direction,
                "dtype": dtype,
                "arch": family,
                "peer_version": version(distribution),
                **{f"ours_{key}": value for key, value in vars(mine).items()},
                **{f"peer_{key}": value for key, value in vars(theirs).items()},
            },
            remark=f"{mine.remark()} beside {theirs.remark()}",
        )


def whole(kernels: Sequence[tuple[Planned, Figures]]) -> Whole:
    """Return what the kernels of one call take together."""
    seeing = [(each, figures) for each, figures in kernels if each.largest >= max(k.largest for k, _ in kernels)]
    fullest = [(_fill(each, figures), figures) for each, figures in seeing]
    fill, least = min(fullest, key=lambda pair: pair[0])
    accesses = [access for _, figures in seeing for access in (figures.loads, figures.stores)]
    return Whole(
        registers=max(figures.registers for _, figures in seeing),
        ctas=least.ctas,
        spill_stores=sum(figures.spill_stores for _, figures in kernels),
        spill_loads=sum(figures.spill_loads for _, figures in kernels),
        local=sum(figures.local for _, figures in kernels),
        programs=min(each.programs for each, _ in seeing),
        fill=fill,
        kernels=len(kernels),
        instructions=sum(figures.instructions for _, figures in kernels),
        wide=16 * sum(a.wide for a in accesses) / max(1, sum(a.bytes - 4 * a.words for a in accesses)),
    )


def _fill(each: Planned, figures: Figures) -> float:
    multiprocessors = MULTIPROCESSORS[each.place.family]
    resident = min(figures.ctas * multiprocessors, each.programs)
    return resident * figures.threads / (multiprocessors * figures.most_threads)


def _name(each: Planned) -> str:
    return PEERS[each.place.module][0] if each.place.module in PEERS else "triton"


def _case(shape: str, each: Planned | Unplanned) -> str:
    return f"{shape} {each.place.dtype} {each.place.family}"
