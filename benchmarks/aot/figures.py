"""The figures of a compiled kernel, read off its binary: registers, local and shared memory, and what it executes."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

READER = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
"""Which figures are kept: those that this module read."""
WIDE = 16
"""Bytes that a thread moves at most in one access to memory."""


@dataclass(frozen=True)
class Access:
    """Accesses to global memory as they stand in the binary: how many, of how many bytes, and those of 16 bytes.

    A copy by the tensor memory accelerator counts as one of 16 bytes.
    """

    count: int
    wide: int
    bytes: int
    words: int
    """Those of 4 bytes, which float32 statistics have."""

    @property
    def share(self) -> float:
        """The share of the accesses that are as wide as can be; 1 where there is none."""
        return self.wide / self.count if self.count else 1.0

    @property
    def share_of_bytes(self) -> float:
        """The same of the bytes that pass through them, but for those of words."""
        rest = self.bytes - 4 * self.words
        return self.wide * WIDE / rest if rest else 1.0


@dataclass(frozen=True)
class Figures:
    """What one compiled kernel takes and does. Registers of AMD are those for vectors, both kinds together."""

    registers: int
    spill_stores: int
    """Bytes that a thread writes to local memory, which is outside of the chip; of AMD, registers that are spilled."""
    spill_loads: int
    local: int
    """Bytes of local memory that a thread has: spilled registers, arrays with computed indices."""
    shared: int
    threads: int
    ctas: int
    """How many programs are resident on a multiprocessor, by registers, shared memory and threads."""
    most_threads: int
    """How many threads a multiprocessor has room for."""
    instructions: int
    mma: int
    """Instructions that multiply matrices."""
    dots_of_16_bits: int
    """Products of matrices of 16 bits that the kernel asks for."""
    loads: Access
    stores: Access

    @property
    def occupancy(self) -> float:
        """The share of a multiprocessor's threads that are resident."""
        return self.ctas * self.threads / self.most_threads


@dataclass(frozen=True)
class Multiprocessor:
    """What a multiprocessor of CUDA shares out among programs (CUDA C++ programming guide, compute capabilities)."""

    shared: int
    most_shared: int
    """Bytes that one program may have."""
    threads: int
    programs: int
    registers: int = 65536
    reserved: int = 1024
    """Bytes of shared memory that each program costs besides its own."""


K = 1024
MULTIPROCESSORS = {
    "sm_80": Multiprocessor(164 * K, 163 * K, 2048, 32),
    "sm_89": Multiprocessor(100 * K, 99 * K, 1536, 24),
    "sm_90": Multiprocessor(228 * K, 227 * K, 2048, 32),
    "sm_100": Multiprocessor(228 * K, 227 * K, 2048, 32),
    "sm_120": Multiprocessor(100 * K, 99 * K, 1536, 24),
}


def resident(family: str, registers: int, threads: int, shared: int) -> int:
    """Return how many programs fit on a multiprocessor of CUDA; 0 where one has too much shared memory."""
    sm, warps = MULTIPROCESSORS[family], threads // 32
    if shared > sm.most_shared:
        return 0
    a_warp = -(-max(registers, 1) * 32 // 256) * 256  # registers are given out to warps, 256 at a time
    quarter = sm.registers // 4 // a_warp  # each of the four schedulers has a quarter of them
    return min(4 * quarter // warps, sm.shared // (shared + sm.reserved), sm.threads // threads, sm.programs)


def resident_amd(registers: int, threads: int, shared: int) -> int:
    """Return how many programs fit on a compute unit of gfx942: four SIMDs of 512 registers a lane and eight waves."""
    waves = min(8, 512 // (-(-max(registers, 1) // 8) * 8))
    return min(4 * waves // (threads // 64), 64 * K // shared if shared else 32, 2048 // threads)


def of_cuda(made: Any, family: str) -> Figures:
    """Return the figures of what Triton compiled for CUDA, as its disassembled binary has them."""
    listing = _disassembled(made.asm["cubin"])
    used = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", listing)
    assert used, "cuobjdump said nothing of registers"
    registers, stack, _, local = map(int, used.groups())  # what it names as shared is the reserve: Triton's is dynamic
    code = re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", listing, re.MULTILINE)
    # More than the warps that were asked for, where the compiler adds some that only load.
    entry = re.search(r"\.(?:reqntid|maxntid)\s+(\d+)", made.asm["ptx"])
    threads = int(entry.group(1)) if entry else 32 * made.metadata.num_warps
    shared = made.metadata.shared
    return Figures(
        registers=registers,
        spill_stores=sum(_bytes_of_sass(name) for name in code if name.startswith("STL")),
        spill_loads=sum(_bytes_of_sass(name) for name in code if name.startswith("LDL")),
        local=stack + local,
        shared=shared,
        threads=threads,
        ctas=resident(family, registers, threads, shared),
        most_threads=MULTIPROCESSORS[family].threads,
        instructions=len(code),
        mma=sum(bool(re.match(r"[HQI]G?MMA|UTC\w*MMA", name)) for name in code),
        dots_of_16_bits=dots_of_16_bits(made.asm["ttir"]),
        loads=_access(_bytes_of_sass(name) for name in code if re.match(r"LDG|UTMALDG", name)),
        stores=_access(_bytes_of_sass(name) for name in code if re.match(r"STG|UTMASTG", name)),
    )


def of_hip(made: Any) -> Figures:
    """Return the figures of what Triton compiled for AMD, as its assembly has them."""
    text = made.asm["amdgcn"]

    def said(name: str) -> int:
        found = re.search(rf"\.{name}:\s*(\d+)", text)
        return int(found.group(1)) if found else 0

    code = re.findall(r"^\s+([a-z]\w+)", text, re.MULTILINE)
    code = [name for name in code if re.match(r"(?:[svd]|ds|buffer|global|flat|scratch)_", name)]
    registers, threads, shared = said("vgpr_count"), 64 * made.metadata.num_warps, made.metadata.shared
    return Figures(
        registers=registers,
        spill_stores=said("vgpr_spill_count") + said("sgpr_spill_count"),
        spill_loads=sum(name.startswith("scratch_load") for name in code),
        local=said("private_segment_fixed_size"),
        shared=shared,
        threads=threads,
        ctas=resident_amd(registers, threads, shared),
        most_threads=2048,
        instructions=len(code),
        mma=sum(name.startswith("v_mfma") for name in code),
        dots_of_16_bits=dots_of_16_bits(made.asm["ttir"]),
        loads=_access(_bytes_of_amd(name) for name in code if re.match(r"(global|buffer|flat)_load", name)),
        stores=_access(_bytes_of_amd(name) for name in code if re.match(r"(global|buffer|flat)_store", name)),
    )


def read_figures(text: str) -> Figures:
    """Return figures from the JSON of their fields."""
    fields = json.loads(text)
    loads, stores = (Access(**fields.pop(name)) for name in ("loads", "stores"))
    return Figures(**fields, loads=loads, stores=stores)


def dots_of_16_bits(ttir: str) -> int:
    """Return how many products of matrices of 16 bits Triton's own code asks for."""
    return len(re.findall(r"tt\.dot\b.*:\s*tensor<[\dx]+x(?:f16|bf16)> \*", ttir))


def _access(bytes_each: Iterator[int]) -> Access:
    all_of_them = list(bytes_each)
    wide, words = all_of_them.count(WIDE), all_of_them.count(4)
    return Access(len(all_of_them), wide, sum(all_of_them), words)


def _bytes_of_sass(name: str) -> int:
    """Return how many bytes a thread moves by an instruction like LDG.E.U16.CONSTANT; 4 where its name says nothing."""
    if name.startswith("UTMA"):
        return WIDE
    widths = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
    return next((widths[part] for part in reversed(name.split(".")) if part in widths), 4)


def _bytes_of_amd(name: str) -> int:
    """Return how many bytes a thread moves by an instruction like buffer_load_dwordx4."""
    if found := re.search(r"dwordx(\d)", name):
        return 4 * int(found.group(1))
    return 4 if "dword" in name else 1 if "byte" in name else 2


def _disassembled(cubin: bytes) -> str:
    """Return what the binary takes, and its instructions."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        commands = [knobs.nvidia.cuobjdump.path, "-res-usage"], [knobs.nvidia.nvdisasm.path, "-ndf", "-c"]
        return "".join(
            subprocess.run([*command, str(file)], capture_output=True, text=True, check=True).stdout
            for command in commands
        )
