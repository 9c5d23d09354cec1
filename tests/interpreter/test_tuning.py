"""The tuner's search, on the interpreter and with a clock that makes times up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kolors_ops.geglu import op as geglu
from kolors_ops.geglu.config import GEGLUTriton
from kolors_ops.operators import Launch
from kolors_ops.table import INTERPRETED_AS, Row, Table, read_rows, table_at
from kolors_ops.trials import Trial
from kolors_ops.tuning.config import Tune
from kolors_ops.tuning.job import LOG, TABLE, TuneJob
from kolors_ops.tuning.log import ENDED
from kolors_ops.tuning.neighbours import neighbours, settings_of

from kolors_kernel import BuildContext
from kolors_kernel.errors import Interrupted, RecipeError, RunError

CALLS = (Trial("geglu", (1, 2, 6000), calls=3),)
FORWARD, BACKWARD = "geglu_forward", "geglu_backward"
Milliseconds = Callable[[dict[str, Any]], float]


class MadeUp:
    """A clock whose times are a function of the configuration that is being tried."""

    device, name = torch.device("cpu"), "made up"

    def __init__(self, out: Path, of: Milliseconds) -> None:
        self.log, self.of, self.asked = out / LOG, of, list[dict[str, Any]]()

    def milliseconds(self, work: Callable[[], object]) -> float:
        work()
        self.asked.append(json.loads(self.log.read_text(encoding="utf-8").splitlines()[-1]))
        assert self.asked[-1]["event"] == "began"
        return self.of(self.asked[-1])

    def ctas(self, kind: str, row: Row, table: Table) -> int:
        assert kind == "geglu"
        assert row in table.rows
        return 77


def lines(out: Path, event: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (out / LOG).read_text(encoding="utf-8").splitlines()]
    return [line for line in found if line["event"] == event]


def tune(out: Path, of: Milliseconds, **settings: Any) -> tuple[dict[str, float], MadeUp]:
    recipe = Tune(**{"device": "cpu", "kernels": [FORWARD], "bits": [32], "candidates": 6, **settings})
    clock = MadeUp(out, of)
    return dict(TuneJob(recipe, BuildContext(out=out), clock=clock, trials=CALLS).run()), clock


def shipped(kernel: str = FORWARD, bits: int = 32) -> Row:
    return table_at("").need(kernel, INTERPRETED_AS, bits, 3000)


def written(out: Path, kernel: str = FORWARD, bits: int = 32) -> Row:
    return Table(read_rows(out / TABLE)).need(kernel, INTERPRETED_AS, bits, 3000)


def at_block(size: int) -> Milliseconds:
    """Least at this size, more the further away."""
    return lambda tried: 1.0 + abs(tried["blocks"]["BLOCK"] - size) / size + 0.1 * (tried["warps"] != shipped().warps)


def test_the_fastest_near_the_shipped_row_is_written_and_every_other_row_is_kept(tmp_path: Path) -> None:
    figures, clock = tune(tmp_path, at_block(2048))
    assert written(tmp_path) == shipped().model_copy(update={"blocks": {"BLOCK": 2048}, "ctas": 77})
    others = {row.model_dump_json() for row in read_rows(tmp_path / TABLE)} - {written(tmp_path).model_dump_json()}
    assert others == {
        row.model_dump_json() for row in table_at("").rows if row.family == INTERPRETED_AS and row != shipped()
    }
    assert figures["rows"] == len(others) + 1
    assert (figures["tuned"], figures["changed"], figures["rejected"]) == (1, 1, 0)
    assert figures["tried"] == len(clock.asked) == 1 + len(neighbours(shipped(), most=6))
    assert {line["milliseconds"] for line in lines(tmp_path, "ended")} == {3 * clock.of(line) for line in clock.asked}


def test_the_table_that_was_written_is_one_the_op_takes(tmp_path: Path, as_right_as_torch: Any) -> None:
    tune(tmp_path, at_block(512))
    op = GEGLUTriton(table=tmp_path / TABLE).build(BuildContext())
    x = torch.randn(3, 200, generator=torch.Generator().manual_seed(0))
    value, gate = x.chunk(2, dim=-1)
    right = value.double() * torch.nn.functional.gelu(gate.double())
    as_right_as_torch([op(x)], [right], [value * torch.nn.functional.gelu(gate)])


def test_a_row_gives_way_only_to_one_that_saves_enough(tmp_path: Path) -> None:
    figures, _ = tune(tmp_path, lambda tried: 0.99 if tried["warps"] != shipped().warps else 1.0, gain=0.02)
    assert settings_of(written(tmp_path)) == settings_of(shipped())
    assert written(tmp_path).ctas == 77
    assert (figures["tuned"], figures["changed"]) == (1, 0)


def test_the_way_back_is_timed_for_its_own_kernel(tmp_path: Path) -> None:
    _, clock = tune(tmp_path, at_block(1024), kernels=None, candidates=1)
    assert {line["key"].split(",")[0] for line in clock.asked} == {FORWARD, BACKWARD}
    assert written(tmp_path, BACKWARD).ctas == 77
    assert written(tmp_path, BACKWARD, bits=16) == shipped(BACKWARD, bits=16)  # bits=[32] alone


@pytest.mark.usefixtures("fence")  # so that what is not written is NaN and not what memory had
def test_a_candidate_that_is_wrong_is_rejected_however_fast_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = geglu.plan_forward

    def cut(x: Any, out: Any, pick: Any) -> list[Launch]:
        (one,) = right(x, out, pick)
        grid = (one.grid[0], one.grid[1] - (one.row.blocks["BLOCK"] == 2048))
        return [Launch(one.kernel, grid, one.arguments, one.row)]

    monkeypatch.setattr(geglu, "plan_forward", cut)
    figures, clock = tune(tmp_path, at_block(2048))
    assert written(tmp_path).blocks != {"BLOCK": 2048}
    assert not [line for line in clock.asked if line["blocks"] == {"BLOCK": 2048}]
    wrong = [line["wrong"] for line in lines(tmp_path, "ended") if line["blocks"] == {"BLOCK": 2048}]
    assert figures["rejected"] == len(wrong) > 0
    assert all("geglu 1x2x6000: result 0: nan off, allowed" in each for each in wrong)


def test_a_candidate_that_cannot_be_launched_is_rejected_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.runtime.errors import OutOfResources

    right = geglu.plan_forward

    def refusing(x: Any, out: Any, pick: Any) -> list[Launch]:
        (one,) = right(x, out, pick)
        if one.row.blocks["BLOCK"] == 512:
            raise OutOfResources(300_000, 232_448, "shared memory")
        return [one]

    monkeypatch.setattr(geglu, "plan_forward", refusing)
    tune(tmp_path, at_block(512))
    assert written(tmp_path).blocks != {"BLOCK": 512}
    wrong = [line["wrong"] for line in lines(tmp_path, "ended") if line["blocks"] == {"BLOCK": 512}]
    assert wrong
    assert all("OutOfResources: out of resource: shared memory" in each for each in wrong)


def test_where_no_candidate_is_right_the_run_fails_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right, planned = geglu.plan_forward, list[Any]()

    def at_first(x: Any, out: Any, pick: Any) -> list[Launch]:
        planned.append(right(x, out, pick))
        if len(planned) > 1:
            raise ValueError("no room")
        return planned[0]

    monkeypatch.setattr(geglu, "plan_forward", at_first)  # once, to see which rows are used
    with pytest.raises(RunError, match=r"no configuration of geglu_forward, 32 bits, width 65536 is right"):
        tune(tmp_path, at_block(2048))
    assert {line["wrong"] for line in lines(tmp_path, "ended")} == {"geglu 1x2x6000: ValueError: no room"}
    assert settings_of(written(tmp_path)) == settings_of(shipped())


def test_rows_that_were_tuned_are_kept_when_the_command_is_given_again(tmp_path: Path) -> None:
    tune(tmp_path, at_block(2048))
    before = (tmp_path / TABLE).read_bytes()
    figures, clock = tune(tmp_path, at_block(256))
    assert (tmp_path / TABLE).read_bytes() == before
    assert clock.asked == []
    assert (figures["tuned"], figures["tuned before"]) == (0, 1)


def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    def stopping(tried: dict[str, Any]) -> float:
        if len(lines(tmp_path, "ended")) == 2:
            raise Interrupted(15, "what was finished is kept")
        return at_block(2048)(tried)

    with pytest.raises(Interrupted):
        tune(tmp_path, stopping)
    assert settings_of(written(tmp_path)) == settings_of(shipped())  # a whole table all the while
    with (tmp_path / LOG).open("a", encoding="utf-8") as file:
        file.write('{"event": "ended", "ke')  # as a run that was killed leaves it
    figures, clock = tune(tmp_path, at_block(2048))
    assert len(clock.asked) == figures["tried"] - 2
    assert written(tmp_path).blocks == {"BLOCK": 2048}


def test_a_candidate_that_took_the_process_with_it_is_not_tried_again(tmp_path: Path) -> None:
    def dying(tried: dict[str, Any]) -> float:
        if tried["blocks"] == {"BLOCK": 2048}:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return 1.0

    with pytest.raises(RuntimeError, match="illegal memory access"):
        tune(tmp_path, dying)
    figures, clock = tune(tmp_path, at_block(2048))
    died = lines(tmp_path, "began")[-1 - len(clock.asked)]
    assert died["blocks"] == {"BLOCK": 2048}
    assert died not in clock.asked
    assert figures["rejected"] == 1
    assert ENDED == "an earlier run ended while it was tried"


def test_what_was_tuned_on_another_gpu_is_not_mixed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tune(tmp_path, at_block(2048))
    monkeypatch.setattr(MadeUp, "name", "another")
    with pytest.raises(RecipeError, match="is of another GPU, made up and not another: use another --out"):
        tune(tmp_path, at_block(2048))


def test_a_new_family_starts_from_the_rows_of_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kolors_ops.tuning.job.family_of", lambda device: "sm_999")
    recipe = Tune(device="cpu", kernels=[])
    TuneJob(recipe, BuildContext(out=tmp_path)).run()
    rows = read_rows(tmp_path / TABLE)
    assert {row.family for row in rows} == {"sm_999"}
    assert [settings_of(row) for row in rows] == [
        settings_of(row) for row in table_at("").rows if row.family == "sm_80"
    ]


def test_a_kernel_that_is_not_there_is_an_error_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"the table has no geglu_sideways for sm_80; it has: .*geglu_backward"):
        tune(tmp_path, at_block(2048), kernels=["geglu_sideways"])


def test_without_a_gpu_the_run_ends_at_its_start(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="tuning times kernels on a GPU, and torch sees none"):
        TuneJob(Tune(), BuildContext("cuda", out=tmp_path / "out")).run()
    assert not (tmp_path / "out").exists()


def test_neighbours_are_few_near_and_all_different() -> None:
    row = Row(
        kernel="k", family="f", bits=16, width=64, blocks={"M": 128, "N": 64, "EVEN": 1}, warps=4, stages=1, ctas=2
    )
    near = neighbours(row, most=100)
    assert len({settings_of(each) for each in (row, *near)}) == len(near) + 1 <= 25
    assert {each.blocks["EVEN"] for each in near} == {1}
    assert {each.stages for each in near} == {1, 2}  # none below 1
    assert {each.warps for each in near} == {2, 4, 8}
    assert {tuple(each.blocks.values()) for each in near} >= {(64, 64, 1), (256, 64, 1), (256, 32, 1), (64, 128, 1)}
    assert [*map(settings_of, neighbours(row, most=3))] == [*map(settings_of, near[:3])]
    narrow = row.model_copy(update={"blocks": {"M": 4}, "warps": 1})
    assert {each.blocks["M"] for each in neighbours(narrow, most=100)} == {4, 8}
