"""What a tuner asks of a GPU: the time of a call, and how many programs of a kernel it holds at once."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from kolors_kernel.errors import RecipeError
from kolors_ops.operators import INSTALLED, INTERPRETED
from kolors_ops.table import Row, Table

REGISTERS, RESERVED = 65536, 1024
"""Of a multiprocessor of CUDA; bytes of shared memory that a program costs besides its own."""
AMD_REGISTERS, AMD_SIMDS, AMD_WAVES, AMD_SHARED = 512, 4, 8, 65536
"""Vector registers of a lane, SIMDs of a compute unit, waves of a SIMD, bytes of shared memory (CDNA 3)."""


class GPUClock:
    """A GPU by torch's name of the device. Raises RecipeError where there is none."""

    def __init__(self, device: str, *, milliseconds: int) -> None:
        self.device = torch.device(device)
        if not torch.cuda.is_available():
            raise RecipeError("tuning times kernels on a GPU, and torch sees none")
        if self.device.type != "cuda":
            raise RecipeError(f"tuning times kernels on a GPU, not on device {device}: --set device=cuda")
        if not INSTALLED:
            raise RecipeError("tuning needs triton, which is not installed: pip install 'kolors-kernel[triton]'")
        if INTERPRETED:
            raise RecipeError("TRITON_INTERPRET is set: kernels are interpreted then, so that no time means anything")
        self.name = torch.cuda.get_device_name(self.device)
        self._milliseconds = milliseconds
        if self.device.index is not None:
            torch.cuda.set_device(self.device)  # Triton measures on the current one

    def milliseconds(self, work: Callable[[], object]) -> float:
        """Return the median time of a call on the device, with the second-level cache emptied before each."""
        from triton.testing import do_bench

        return float(do_bench(work, rep=self._milliseconds, return_mode="median"))

    def ctas(self, kind: str, row: Row, table: Table) -> int:
        """Return how many programs of a row's kernel fit on a multiprocessor, by what it was compiled to, or 1.

        It is asked of the shapes that the op's own samples have, and is the least over them. `table` has the row.
        """
        dtype = torch.bfloat16 if row.bits == 16 else torch.float32

        def pick(kernel: str, x: object, width: int, case: str = "") -> Row:
            return table.need(kernel, row.family, row.bits, width, case)

        launches = [
            launch
            for sample in import_module(f"kolors_ops.{kind}.op").samples(dtype)
            for launch in sample.plan(pick)
            if launch.row == row
        ]
        return min((self._resident(launch) for launch in launches), default=1)

    def _resident(self, launch: Any) -> int:
        made = launch.kernel.warmup(grid=launch.grid, **launch.options())
        made = made.result() if hasattr(made, "result") else made
        made._init_handles()  # a binary that is not loaded has not said its registers
        device = torch.cuda.get_device_properties(self.device)
        threads, shared = made.metadata.num_warps * device.warp_size, made.metadata.shared
        if torch.version.hip:
            waves = min(AMD_WAVES, AMD_REGISTERS // _up(made.n_regs, 8))
            by_registers, by_shared = AMD_SIMDS * waves // made.metadata.num_warps, AMD_SHARED // max(shared, 1)
        else:
            quarter = REGISTERS // 4 // _up(32 * made.n_regs, 256)  # each of four schedulers has a quarter of them
            by_registers = 4 * quarter // made.metadata.num_warps
            by_shared = device.shared_memory_per_multiprocessor // (shared + RESERVED)
        by_threads = device.max_threads_per_multi_processor // threads
        return max(1, int(min(by_registers, by_shared, by_threads)))


def _up(count: int, step: int) -> int:
    return -(-max(count, 1) // step) * step
