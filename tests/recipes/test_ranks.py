"""Training by several processes, started as a user starts them: torchrun and the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from safetensors.torch import load_file

from kolors_kernel.values import Sample, SampleRecord

ROOT = Path(__file__).resolve().parents[2]
COUNTS = {(16, 16): 23, (16, 24): 14, (24, 16): 6}
"""Samples by the size of their pictures: 43 in three buckets, none a multiple of a global batch."""

PLUGIN = dedent('''
    """A recipe without randomness, and a source that writes down what it gave."""

    from __future__ import annotations

    import json, os, signal
    from pathlib import Path
    from typing import TYPE_CHECKING, Literal

    import torch
    from pydantic import Field
    from kolors_kernel import hookimpl
    from kolors_kernel.graph import Graph, step
    from kolors_kernel.kinds import DataSourceConfig
    from kolors_recipes.steps import weighted_mean
    from kolors_recipes.training import RunnableStage, Training
    from kolors_recipes.training_config import Phase, TrainingRecipe
    from safetensors.torch import save_file

    if TYPE_CHECKING:
        from kolors_kernel.values import Latents, Loss, Prediction, Weights


    @step(writes="loss")
    def error(latents: Latents, weight: Weights, model: Prediction) -> Loss:
        return weighted_mean((model(latents.mean((2, 3))) - latents.mean((1, 2, 3))[:, None]).square(), weight)


    class Linear(TrainingRecipe):
        type: Literal["linear"] = "linear"
        stages: list[Phase] = Field(min_length=1)

        def graphs(self):
            return {"only": Graph([error], inputs=("latents", "weight", "model"), outputs=("loss",))}

        def build(self, ctx):
            model = torch.nn.Linear(4, 1)
            with torch.no_grad():
                model.weight.fill_(0.5), model.bias.zero_()
            stages = [
                RunnableStage(phase, self.graphs()["only"], phase.data.build(ctx), {"model": model}, {"linear": model})
                for phase in self.stages
            ]
            def save(folder):
                folder.mkdir(parents=True, exist_ok=True)
                save_file(model.state_dict(), folder / "linear.safetensors")
            return Training.assemble(self, stages, ctx, save=save)


    class Recorded(DataSourceConfig):
        type: Literal["recorded"] = "recorded"
        data: DataSourceConfig

        def ports(self):
            return self.data.ports()

        def build(self, ctx):
            return RecordedSource(self.data.build(ctx), ctx.out)


    class RecordedSource:
        def __init__(self, source, out):
            self.source, self.out, self.given = source, out, 0
            self.batch, self.fingerprint = source.batch, source.fingerprint

        def batches(self, *, epoch, rank=0, **where):
            for batch in self.source.batches(epoch=epoch, rank=rank, **where):
                if rank == 1 and str(self.given) == os.environ.get("DIE_AT"):
                    os.kill(os.getpid(), signal.SIGKILL)
                real = [r.id for r, weight in zip(batch.records, batch.weight.tolist()) if weight]
                line = {"epoch": epoch, "rank": rank, "n": self.given, "ids": real}
                self.out.mkdir(parents=True, exist_ok=True)
                with (self.out / f"given-{os.getpid()}.jsonl").open("a") as file:
                    file.write(json.dumps(line) + "\\n")
                self.given += 1
                yield batch


    @hookimpl
    def kolors_components():
        return [Linear, Recorded]
''')


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the plugin installed and a store of latents in three buckets."""
    from kolors_zarr.store.writing import write_store

    folder = tmp_path_factory.mktemp("ranks")
    (folder / "stranger_linear.py").write_text(PLUGIN, encoding="utf-8")
    info = folder / "stranger_linear-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger-linear\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[kolors.v1]\nlinear = stranger_linear\n")
    generator = torch.Generator().manual_seed(0)
    write_store(
        folder / "store.zarr",
        [
            Sample(
                SampleRecord(f"{height}x{width}-{i}", (height, width), {"en_original": str(i)}),
                latents=torch.randn(4, height // 8, width // 8, generator=generator).half(),
                size=(height, width, 0, 0, height, width),
            )
            for (height, width), count in COUNTS.items()
            for i in range(count)
        ],
        shard_rows=8,
    )
    return folder


def train(folder: Path, out: str, *, ranks: int, batch: int, steps: int, die_at: int | None = None) -> int:
    data = f"{{type: zarr, path: {folder}/store.zarr, pictures: latents, batch: {batch}}}"
    recipe = folder / f"{out}-{ranks}.yaml"
    stage = f"{{name: only, steps: {steps}, ema: 0, data: {{type: recorded, data: {data}}}}}"
    recipe.write_text(f"type: linear\ncheckpoint_every: 2\nlog_every: 1\nstages: [{stage}]\n", encoding="utf-8")
    starts = [sys.executable, "-m"]
    if ranks > 1:
        starts += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
    command = [*starts, "kolors_kernel", "run", str(recipe), "--out", str(folder / out)]
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", "OMP_NUM_THREADS": "1"}
    environment |= {"DIE_AT": str(die_at)} if die_at is not None else {}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    if die_at is None:
        assert done.returncode == 0, done.stderr[-3000:]
    return done.returncode


def given(folder: Path, out: str) -> list[dict[str, object]]:
    files = (folder / out).glob("given-*.jsonl")
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def forget(folder: Path, out: str) -> None:
    for file in (folder / out).glob("given-*.jsonl"):
        file.unlink()


def counted(lines: list[dict[str, object]], epoch: int = 0) -> Counter[str]:
    return Counter(id for line in lines if line["epoch"] == epoch for id in line["ids"])  # type: ignore[attr-defined]


def everything() -> Counter[str]:
    return Counter(f"{height}x{width}-{i}" for (height, width), n in COUNTS.items() for i in range(n))


@pytest.mark.slow
def test_two_ranks_end_the_epoch_together_and_train_as_one_would(folder: Path) -> None:
    # 43 samples in global batches of 8: 2 + 1 + 0 full ones; left are 7, 6 and 6: six rank batches of 4, or three of 8.
    train(folder, "two", ranks=2, batch=4, steps=6)
    lines = given(folder, "two")
    by_rank = {rank: [line for line in lines if line["rank"] == rank] for rank in (0, 1)}
    assert [len(by_rank[rank]) for rank in (0, 1)] == [6, 6]
    assert {line["epoch"] for line in lines} == {0}
    assert counted(lines) == everything()
    train(folder, "one", ranks=1, batch=8, steps=6)
    assert counted(given(folder, "one")) == everything()
    first, second = (
        [json.loads(line)["loss"] for line in (folder / out / "log.jsonl").read_text().splitlines() if "loss" in line]
        for out in ("one", "two")
    )
    assert first[:3] == pytest.approx(second[:3], rel=1e-5)  # the full batches are the same samples
    weights = [load_file(folder / out / "weights/linear.safetensors") for out in ("one", "two")]
    assert all(w["weight"].isfinite().all() for w in weights)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 3])
def test_a_killed_run_goes_on_with_other_ranks_and_no_sample_is_lost_or_met_twice(folder: Path, ranks: int) -> None:
    out = f"killed-{ranks}"
    code = train(folder, out, ranks=2, batch=2, steps=100, die_at=5)
    assert code != 0
    kept = max(int(each.name) for each in (folder / out / "checkpoints").glob("[0-9]*"))
    assert kept == 4
    before = [line for line in given(folder, out) if line["n"] < kept]  # type: ignore[operator]
    forget(folder, out)
    state = json.loads((folder / out / f"checkpoints/{kept:08d}/state.json").read_text())
    assert state["position"]["share"] == [2, 2]
    train(folder, out, ranks=ranks, batch=2, steps=100)
    after = given(folder, out)
    assert counted(before + after) == everything()
    assert counted(after, epoch=1) == everything()
    steps = Counter(line["rank"] for line in after)
    assert len(set(steps.values())) == 1
    assert set(steps) == set(range(ranks))


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_at_one_step_with_a_checkpoint(folder: Path) -> None:
    data = f"{{type: zarr, path: {folder}/store.zarr, pictures: latents, batch: 2}}"
    recipe = folder / "stopped.yaml"
    stage = f"{{name: only, steps: 1000000, ema: 0, data: {{type: recorded, data: {data}}}}}"
    recipe.write_text(f"type: linear\ncheckpoint_every: 1000000\nstages: [{stage}]\n", encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command += ["kolors_kernel", "run", str(recipe), "--out", str(folder / "stopped")]
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        while len(list((folder / "stopped").glob("given-*.jsonl"))) < 2:
            assert process.poll() is None, process.stdout.read() if process.stdout else ""
        (one, *_) = (folder / "stopped").glob("given-*.jsonl")
        os.kill(int(one.stem.removeprefix("given-")), signal.SIGTERM)
        process.communicate(timeout=120)
    (kept,) = (int(each.name) for each in (folder / "stopped/checkpoints").glob("[0-9]*"))
    by_rank = Counter(line["rank"] for line in given(folder, "stopped"))
    assert by_rank == {0: kept, 1: kept}
