"""What the tuner asks of a GPU, asked of one that is made up: its times, and what it has room for."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from kolors_ops import table
from kolors_ops.operators import Launch
from kolors_ops.table import Row, Table, table_at
from kolors_ops.trials import KINDS, Draw, Judge, Tape, Trial, implementation, made_by
from kolors_ops.tuning.clock import GPUClock
from kolors_ops.tuning.config import Tune
from kolors_ops.tuning.job import TuneJob
from kolors_ops.tuning.proving import TRIALS

from benchmarks import gpu
from benchmarks.aot import figures
from kolors_kernel import BuildContext, load_recipe
from kolors_kernel.errors import RecipeError

pytest.importorskip("triton")
CPU = torch.device("cpu")
ROW = Row(kernel="k", family="sm_90", bits=16, width=64, blocks={}, warps=4, ctas=1)


@pytest.fixture
def device() -> Iterator[list[str]]:
    """A device of Triton's on which the n-th event is recorded n milliseconds after the first; what it was told."""
    from triton import runtime

    told, clock = list[str](), itertools.count()

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            told.append("record")
            self.at = next(clock)

        def elapsed_time(self, other: Event) -> float:
            return float(other.at - self.at)

    driver: Any = SimpleNamespace(
        get_device_interface=lambda: SimpleNamespace(Event=Event, synchronize=lambda: told.append("synchronize")),
        get_empty_cache_for_benchmark=lambda: None,
        clear_cache=lambda cache: told.append("clear"),
    )
    before = runtime.driver._active
    runtime.driver.set_active(driver)
    yield told
    runtime.driver._active = before


def pretended(**settings: Any) -> GPUClock:
    clock: Any = object.__new__(GPUClock)
    vars(clock).update({"device": torch.device("cuda"), "_milliseconds": 5, **settings})
    return clock


def test_the_time_of_a_call_is_the_median_with_the_cache_emptied_before_each(device: list[str]) -> None:
    calls = []
    assert pretended().milliseconds(lambda: calls.append(device.append("call"))) == 1.0
    timed = device[-1 - 4 * 3 : -1]
    assert timed[:8] == ["clear", "record", "call", "record"] * 2
    assert device[-1] == "synchronize"


def test_the_bench_has_the_median_and_two_quantiles(device: list[str]) -> None:
    found = gpu._clock(5)(lambda: None)
    assert (found.median, found.low, found.high) == (1.0, 1.0, 1.0)


def with_room_of_sm_90(monkeypatch: pytest.MonkeyPatch) -> None:
    room = figures.MULTIPROCESSORS["sm_90"]
    properties = SimpleNamespace(
        warp_size=32,
        shared_memory_per_multiprocessor=room.shared,
        max_threads_per_multi_processor=room.threads,
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)


def binary(registers: int, warps: int, shared: int) -> Any:
    """A compiled kernel that says its registers when it has been loaded, as Triton's do."""
    made = SimpleNamespace(n_regs=None, metadata=SimpleNamespace(num_warps=warps, shared=shared))
    made._init_handles = lambda: setattr(made, "n_regs", registers)
    return made


@pytest.mark.parametrize("registers", [24, 32, 40, 128, 129, 168, 255])
@pytest.mark.parametrize(("warps", "shared"), [(1, 0), (4, 0), (8, 65536), (4, 100_000), (16, 1024)])
def test_the_programs_that_fit_are_those_that_compiling_without_a_gpu_says(
    registers: int, warps: int, shared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_room_of_sm_90(monkeypatch)
    kernel = SimpleNamespace(warmup=lambda grid, **options: binary(registers, warps, shared))
    found = pretended()._resident(Launch(kernel, (1,), {}, ROW))
    room = figures.MULTIPROCESSORS["sm_90"]
    said = figures.resident("sm_90", registers, 32 * warps, shared)
    assert min(found, room.programs) == max(1, said)


def test_the_least_over_the_samples_that_use_the_row_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    from kolors_ops.geglu import op

    with_room_of_sm_90(monkeypatch)
    asked: list[int] = []
    rows = [row for row in table_at("").rows if row.family == "sm_90" and row.kernel.startswith("geglu")]
    row = next(row for row in rows if row.kernel == "geglu_forward" and row.bits == 16)

    def resident(self: GPUClock, launch: Launch) -> int:
        assert launch.row == row
        asked.append(launch.arguments["F"])
        return launch.arguments["F"] // 100

    monkeypatch.setattr(GPUClock, "_resident", resident)
    assert pretended().ctas("geglu", row, Table(rows)) == min(asked) // 100
    assert len(asked) == len(list(op.samples(torch.bfloat16))) / 2  # and not the ones that go back
    assert pretended().ctas("geglu", row.model_copy(update={"warps": 16}), Table(rows)) == 1  # which nothing uses


def test_a_gpu_must_be_asked_for_and_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe: Any = load_recipe("tune")
    assert recipe == Tune()
    job = TuneJob(recipe, BuildContext(recipe.device, out=tmp_path / "out"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError, match="tuning times kernels on a GPU, and torch sees none"):
        job.run()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(RecipeError, match="not on device cpu: --set device=cuda"):
        TuneJob(Tune(device="cpu"), BuildContext("cpu", out=tmp_path / "out")).run()
    assert not (tmp_path / "out").exists()


def test_a_lent_table_is_known_until_it_is_given_back() -> None:
    lent = Table([ROW])
    with table.lent(lent) as name:
        assert table_at(name) is lent
    with pytest.raises(RecipeError, match="cannot be read"):
        table_at(name)


SMALL = {
    "attention": (2, 3, 20, 7, 16),
    "group_norm_silu": (2, 64, 5, 3),
    "geglu": (2, 3, 40),
    "add_layer_norm": (2, 3, 40),
    "rms_norm": (5, 48),
    "rotary": (5, 3, 16),
    "quantized_linear": (5, 128, 10),
}
FORMS = {
    "attention": ("bias",),
    "group_norm_silu": ("channels_last", "no silu"),
    "add_layer_norm": ("alone",),
    "quantized_linear": ("8 bits bias", "4 bits", "4 bits by 64", "4 bits by 64 bias"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_definition_is_judged_right_and_a_little_more_than_that_wrong(kind: str, dtype: torch.dtype) -> None:
    reference = implementation(kind, "reference")

    def off(*arguments: Any, **named: Any) -> Any:
        made = made_by(lambda *given: reference(*given, **named), arguments)
        return *made[:-1], made[-1] * (1 + 20 * torch.finfo(dtype).eps)

    def nowhere(*arguments: Any, **named: Any) -> Any:
        return tuple(each * torch.nan for each in off(*arguments, **named))

    for form in ("", *FORMS.get(kind, ())):
        trial = Trial(kind, SMALL[kind], form)
        judge = Judge(trial, Draw(CPU, dtype))
        assert judge.verdict(reference).wrong is None
        assert "allowed" in str(judge.verdict(off).wrong)
        assert "nan off" in str(judge.verdict(nowhere).wrong)


def test_a_result_of_another_shape_is_no_result() -> None:
    judge = Judge(Trial("rms_norm", (5, 48)), Draw(CPU, torch.float32))
    with pytest.raises((ValueError, RuntimeError), match="shape"):
        judge.verdict(lambda x, weight, eps: (x * weight)[:3])


def test_the_gradients_of_a_tape_can_be_asked_for_again() -> None:
    trial = Trial("add_layer_norm", (2, 3, 8))
    tape = Tape("add_layer_norm", KINDS[trial.kind].torchs, trial.arguments(Draw(CPU, torch.float64)))
    first, again = tape.gradients(), tape.gradients()
    assert len(first) == 4
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def rows_asked_for(family: str, trials: tuple[Trial, ...], watch: Callable[[Row], None]) -> None:
    """Tell of every row that the kernels of these calls have in the table, as far as the ops ask before a call."""
    from benchmarks.on_device.planning import as_if_on

    class Watched(Table):
        def pick(self, *asked: Any) -> Row | None:
            row = super().pick(*asked)
            if row is not None:
                watch(row)
            return row

    with as_if_on(family, tuple(KINDS)), table.lent(Watched(table_at("").rows)) as name:
        for trial, dtype in itertools.product(trials, (torch.bfloat16, torch.float32)):
            op = implementation(trial.kind, "triton")
            op.table = name
            assert op.refuses(*trial.arguments(Draw(torch.device("meta"), dtype)), **trial.named) is None, trial


@pytest.mark.parametrize("family", ["sm_90", "gfx942"])
def test_the_tuner_tries_calls_for_every_width_of_every_kernel_of_the_nets(family: str) -> None:
    found: set[str] = set()
    rows_asked_for(family, TRIALS, lambda row: found.add(repr(row)))
    chosen = [row for row in table_at("").rows if row.family == family]
    left = {row.kernel for row in chosen if repr(row) not in found}
    assert left < {row.kernel for row in chosen}
    # These are asked for by the plan of a call alone.
    left -= {"group_norm_whole", "group_norm_whole_backward", "attention_backward_queries"}
    assert not left
