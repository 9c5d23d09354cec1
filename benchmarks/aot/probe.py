"""What a kernel becomes on a GPU that is not there: launches compiled ahead of time, and the figures of the binary.

A launch goes the way that it goes on a GPU, through the JIT's own look at its arguments (which are 1, which are
multiples of 16), up to the binary. ptxas, cuobjdump and AMD's code generator come inside Triton's wheel.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.aot.figures import READER, Figures, of_cuda, of_hip, read_figures

TARGETS: Mapping[str, tuple[str, int | str, int]] = {
    "sm_80": ("cuda", 80, 32),
    "sm_89": ("cuda", 89, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "sm_120": ("cuda", 120, 32),
    "gfx942": ("hip", "gfx942", 64),
}
"""What Triton calls each family of GPUs: backend, architecture, threads in a warp."""


def compiled(kernel: Any, options: Mapping[str, Any], family: str) -> Any:
    """Return Triton's compiled kernel for a launch with these arguments by name, on tensors of any device or none."""
    with _on(family):
        made = kernel.warmup(grid=(1,), enable_fp_fusion=True, **options)
    return made.result() if hasattr(made, "result") else made


def figures(kernel: Any, options: Mapping[str, Any], family: str) -> Figures:
    """Compile a launch and read off its figures. Raises whatever Triton raises for a kernel that does not compile.

    They are kept beside the binary in Triton's cache, since disassembling takes as long as compiling.
    """
    from triton.runtime.cache import get_cache_manager

    made = compiled(kernel, options, family)
    kept, name = get_cache_manager(made.hash), f"{READER}.figures.json"
    if file := kept.get_file(name):
        return read_figures(Path(file).read_text(encoding="utf-8"))
    found = of_cuda(made, family) if TARGETS[family][0] == "cuda" else of_hip(made)
    kept.put(json.dumps(asdict(found)), name, binary=False)
    return found


@dataclass(frozen=True)
class Noted:
    """What the JIT notes of a launch before it compiles."""

    identity: str
    """Equal where Triton compiles two launches once."""
    constants: str
    """The same without which integers are multiples of 16: constants, dtypes, and which arguments are absent."""


def noted(kernel: Any, options: Mapping[str, Any], family: str) -> Noted:
    """Return what the JIT tells this launch apart by."""
    from triton.runtime.jit import compute_cache_key

    with _on(family):
        *_, bind = kernel.device_caches[family]
        _, seen, rest = bind(**options)
    constants = [(kind, value if kind == "constexpr" else "") for kind, value in seen]
    return Noted(
        f"{family} {kernel.cache_key} {compute_cache_key({}, seen, rest)}",
        f"{family} {kernel.cache_key} {compute_cache_key({}, constants, rest)}",
    )


def refuse_the_interpreter() -> None:
    """Raise RuntimeError where kernels would be interpreted, which is decided when Triton is imported."""
    if os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "y", "yes"):
        raise RuntimeError("TRITON_INTERPRET is set: kernels are interpreted then, not compiled; unset it")


@contextmanager
def _on(family: str) -> Iterator[None]:
    """Have Triton see one GPU of the family, as far as it looks. Raises RuntimeError in its interpreter."""
    refuse_the_interpreter()
    from triton import runtime

    before = runtime.driver._active
    runtime.driver.set_active(_pretended(family))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        runtime.driver.set_active(before)


def _pretended(family: str) -> Any:
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import DriverBase

    class Pretended(DriverBase):  # type: ignore[misc]
        """Says what the JIT asks before a launch: which target, which device, which stream."""

        def __init__(self) -> None:
            self.get_current_stream = lambda device: 0

        @classmethod
        def is_active(cls) -> bool:
            return True

        def get_current_target(self) -> Any:
            return GPUTarget(*TARGETS[family])

        def get_current_device(self) -> str:
            return family  # the JIT keeps what it compiled by device, so the families do not meet

        def get_active_torch_device(self) -> str:
            return "meta"

        def map_python_to_cpp_type(self, name: str) -> str:
            return name

        def get_benchmarker(self) -> Any:
            raise RuntimeError("there is no device to time anything on")

    return Pretended()
