from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from kolors_ops.geglu.op import plan_forward
from kolors_ops.operators import Launch, pick_from

from benchmarks.aot.figures import dots_of_16_bits, resident, resident_amd
from benchmarks.aot.launches import figures_at
from benchmarks.aot.peers.recorded import row_for
from benchmarks.aot.peers.tutorial_kernel import tutorial_forward
from benchmarks.aot.probe import figures, noted


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    if "TRITON_CACHE_DIR" not in os.environ:
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("teeth")))


def attention(keys: int, warps: int, dtype: torch.dtype = torch.bfloat16) -> Launch:
    q, k = (torch.empty(20, rows, 64, dtype=dtype, device="meta") for rows in (4096, 256))
    lse = torch.empty(20, 4096, device="meta")
    tensors = {"q": q, "k": k, "v": k, "lse": lse, "out": q}
    sizes = {"N": 4096, "L": 256, "E": 64, "BLOCK_M": 128, "BLOCK_N": keys, "sm_scale": 0.125}
    return Launch(tutorial_forward, (32, 20), {**tensors, **sizes}, row_for(tutorial_forward, warps, 3))


def geglu(x: torch.Tensor) -> Launch:
    out = torch.empty(8, 2560, dtype=x.dtype, device="meta")
    return plan_forward(x, out, pick_from("", "sm_80"))[0]


def test_a_kernel_that_spills_is_found_though_its_registers_are_few() -> None:
    launch = attention(keys=256, warps=4)  # all the keys of a text, held at once
    found = figures(launch.kernel, launch.options(), "sm_80")
    assert found.registers <= 32  # what the assembler says where a kernel is far above what there is
    assert found.spill_stores > 4096 < found.spill_loads
    assert found.local > 4096


def test_matrix_instructions_are_told_from_their_absence() -> None:
    launch = attention(keys=64, warps=8)
    for family in ("sm_90", "gfx942"):
        found = figures(launch.kernel, launch.options(), family)
        assert (found.dots_of_16_bits, found.spill_stores) == (2, 0)
        assert found.mma > 4
    assert figures(geglu(wide()).kernel, geglu(wide()).options(), "sm_90").mma == 0
    assert dots_of_16_bits("tt.dot %1, %2, %3, inputPrecision = ieee : tensor<64x64xf32> * tensor<64x64xf32>") == 0


def wide(start: int = 0) -> torch.Tensor:
    return torch.empty(8 * 5120 + start, dtype=torch.bfloat16, device="meta")[start:].view(8, 5120)


@pytest.mark.parametrize("family", ["sm_80", "sm_90"])
def test_loads_of_a_tensor_that_begins_at_an_odd_place_are_narrow(family: str) -> None:
    even, odd = (figures(geglu(x).kernel, geglu(x).options(), family) for x in (wide(), wide(start=1)))
    assert (even.loads.share, even.stores.share) == (1.0, 1.0)
    assert (odd.loads.wide, odd.stores.share) == (0, 1.0)
    assert odd.loads.bytes == even.loads.bytes


def test_launches_that_triton_tells_apart_are_told_apart() -> None:
    even, same, odd = (noted(geglu(x).kernel, geglu(x).options(), "sm_80") for x in (wide(), wide(), wide(1)))
    other = noted(geglu(wide()).kernel, geglu(wide()).options(), "sm_90")
    assert even == same
    assert even.identity != odd.identity and even.constants == odd.constants
    assert even.identity != other.identity


def test_programs_of_a_multiprocessor_by_registers_shared_memory_and_threads() -> None:
    # Registers are given out to warps in 256s, from four files of 16384.
    assert [resident("sm_80", r, 128, 0) for r in (32, 64, 128, 168, 255)] == [16, 8, 4, 3, 2]
    assert resident("sm_80", 145, 256, 0) == 1  # 3 warps a file are 12 warps: one program of 8
    assert resident("sm_80", 32, 128, 48 * 1024) == 3  # with the reserve, 49 KiB of 164
    assert resident("sm_89", 32, 256, 0) == 6  # 1536 threads
    assert resident("sm_90", 32, 128, 228 * 1024) == 0
    assert [resident_amd(r, 256, 0) for r in (32, 128, 129, 256)] == [8, 4, 3, 2]
    assert resident_amd(32, 256, 32 * 1024) == 2


def test_the_interpreter_is_refused_in_words() -> None:
    program = "from benchmarks.__main__ import main; main(['aot', '--op', 'geglu', '--part', 'ours'])"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "TRITON_INTERPRET is set: kernels are interpreted then, not compiled; unset it" in done.stderr


def test_a_kernel_that_does_not_compile_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.aot import launches

    broken = attention(keys=48, warps=4)  # no power of two
    monkeypatch.setattr(launches, "_launches", lambda *place: [broken])
    place = launches.Place("", "bfloat16", "sm_80", 0, 0)
    assert "power of 2" in str(figures_at(place))


@pytest.mark.parametrize("of", ["Triton", "the assembler"])
def test_a_kernel_that_takes_too_long_is_given_up(of: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.aot import launches

    def busy(*launch: object) -> None:
        if of == "the assembler":
            raise RuntimeError("`ptxas` failed with error code -24")
        while True:
            sum(range(1000))

    monkeypatch.setattr(launches, "_launches", lambda *place: [attention(keys=64, warps=4)])
    monkeypatch.setattr(launches, "figures", busy)
    place = launches.Place("", "bfloat16", "sm_80", 0, 0)
    assert figures_at(place, limit=0.2) == "given up after 0.2 seconds of CPU"
