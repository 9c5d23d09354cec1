from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import loader
from benchmarks.__main__ import main
from benchmarks.loaders import memmap, ours
from benchmarks.loaders.batch import Batch, Row, Setting, Task, batched, pack
from benchmarks.loaders.check import Check
from benchmarks.loaders.contender import Contender, Failed, Process
from benchmarks.loaders.map_style import Order
from benchmarks.loaders.source import Source, captions, prepare
from benchmarks.loaders.usage import cpu_seconds, descendants, memory
from benchmarks.report import Note

FIGURES = {"samples_s": 1.0, "cpu_us": 1.0, "first_ms": 1.0, "private_mb": 1.0, "unshared_mb": 1.0, "rss_mb": 1.0}
COUNTS = ("--latents", "40", "--latent-side", "64", "--pictures", "40", "--picture-side", "64")
SMALL = (*COUNTS, "--rounds", "1", "--seconds", "0")


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return prepare(tmp_path_factory.mktemp("data") / "latents", latents=True, count=40, side=64)


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return prepare(tmp_path_factory.mktemp("data") / "jpegs", latents=False, count=40, side=64)


def epoch(source: Source, task: Task, store: Path) -> list[Batch]:
    setting = Setting(task, source.folder, 0, "", size=16)
    store.mkdir()
    memmap.write(setting, store)
    return list(memmap.epochs(store, setting)(1))


def counts(source: Source, task: Task, batches: list[Batch]) -> dict[str, int]:
    check = Check(source, task)
    for batch in batches:
        check.take(batch)
    return dict(check.figures())


@pytest.mark.parametrize("task", ["latents", "bytes", "decoded"])
def test_an_epoch_that_is_whole_passes_the_check_and_one_that_is_not_fails_it(
    task: Task, latents: Source, jpegs: Source, tmp_path: Path
) -> None:
    source = latents if task == "latents" else jpegs
    batches = epoch(source, task, tmp_path / "store")
    assert counts(source, task, batches) == {"missing": 0, "doubled": 0, "wrong": 0}
    twice = counts(source, task, [*batches[1:], batches[1]])
    assert twice == {"missing": len(batches[0].original), "doubled": len(batches[1].original), "wrong": 0}
    first = batches[0]
    shifted = first._replace(original=[*first.original[1:], first.original[0]])
    assert counts(source, task, [shifted, *batches[1:]])["wrong"] == len(first.original)
    damaged = first._replace(content=first.content.clone())
    damaged.content.view(torch.uint8)[(0,) * (damaged.content.dim() - 1)][:24] = 0
    if task == "decoded":
        damaged.content[0] = 255 - damaged.content[0]
    assert counts(source, task, [damaged, *batches[1:]])["wrong"] == 1


def test_an_epoch_is_a_permutation_in_batches_of_one_size_where_pictures_are_decoded(jpegs: Source) -> None:
    order = Order(Setting("decoded", jpegs.folder, 0, "", size=3))
    epochs = []
    for number in range(2):
        order.epoch = number
        batches = list(order)
        assert len(batches) == len(order)
        assert all(len(np.unique(jpegs.sizes[batch], axis=0)) == 1 and len(batch) <= 3 for batch in batches)
        epochs.append(np.concatenate(batches).tolist())
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(40))


def test_rows_that_come_one_by_one_are_gathered_by_size_and_none_is_lost(jpegs: Source) -> None:
    rows = [Row(jpegs.content(number), *captions(number)) for number in range(40)]
    batches = list(batched("decoded", rows, 3))
    assert {len(batch.original) for batch in batches} == {3, 2}
    assert counts(jpegs, "decoded", batches) == {"missing": 0, "doubled": 0, "wrong": 0}


def test_jpegs_are_packed_end_to_end() -> None:
    batch = pack("bytes", [b"abc", memoryview(b"de"), np.frombuffer(b"f", np.uint8)], ["", "", ""], ["", "", ""])
    assert bytes(batch.content.numpy()) == b"abcdef"
    assert batch.offsets is not None
    assert batch.offsets.tolist() == [0, 3, 5, 6]


def test_the_time_and_memory_of_a_child_count_while_it_lives_and_its_time_after() -> None:
    program = """
import sys, time
held = bytearray(b"x") * 50_000_000
while time.process_time() < 0.3: pass
print("done", flush=True)
sys.stdin.read()
"""
    cpu, before = cpu_seconds(), memory()
    child = subprocess.Popen([sys.executable, "-S", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    assert cpu_seconds() - cpu >= 0.3
    after = memory()
    child.communicate()
    assert cpu_seconds() - cpu >= 0.3
    assert after["private_mb"] - before["private_mb"] >= 50
    assert after["rss_mb"] - before["rss_mb"] >= 50


def test_processes_are_found_while_threads_come_and_go() -> None:
    with ThreadPoolExecutor(1) as pool, subprocess.Popen([sys.executable, "-S"], stdin=subprocess.PIPE) as child:
        coming = pool.submit(lambda: [Thread(target=int).start() for _ in range(500)])
        while not coming.done():
            assert child.pid in descendants(os.getpid())


def test_a_loader_that_is_not_installed_says_what_to_install(latents: Source) -> None:
    absent = Contender("absent", "latents", 0, latents.folder, sys.executable)
    with pytest.raises(Failed, match=r"absent.*pip install -r requirements/bench.txt"), Process(absent):
        pass


class FakeProcess:
    """Answers as a process would: a figure from a list in each round, then what the check found."""

    versions = "fake 1.0"

    def __init__(self, name: str, asked: list[str], cpu: list[float], **found: Any) -> None:
        self.name, self.asked, self.cpu = name, asked, iter(cpu)
        self.found = {"missing": 0, "doubled": 0, "wrong": 0, "reordered": True, **found}

    def ask(self, command: str, *arguments: float) -> Any:
        if command == "check":
            return self.found
        self.asked.append(self.name)
        try:
            return {**FIGURES, "cpu_us": next(self.cpu)}
        except StopIteration:
            raise Failed("it broke") from None


def measured(tmp_path: Path, processes: Iterator[FakeProcess]) -> tuple[Any, Any]:
    named = {Contender(each.name, "latents", 0, tmp_path / "source", sys.executable): each for each in processes}
    return loader._rounds(named, 2, 0.0)  # type: ignore[arg-type]


def test_every_round_measures_all_from_another_one_on_and_ratios_are_taken_in_the_round(tmp_path: Path) -> None:
    asked: list[str] = []
    fakes = [FakeProcess(name, asked, cpu) for name, cpu in {"a": [1, 2], "b": [2, 8], "c": [5, 5]}.items()]
    outcomes, notes = measured(tmp_path, iter(fakes))
    assert "".join(asked) == "abc" + "bca"
    assert not notes
    row = loader._row(outcomes[0], outcomes[1])
    assert (row.ours, row.peer, row.ratio) == (1.5, 5.0, 3.0)


def test_a_loader_that_fails_or_delivers_wrong_samples_becomes_a_note(tmp_path: Path) -> None:
    fakes = [
        FakeProcess("good", [], [1, 1]),
        FakeProcess("broken", [], [1]),
        FakeProcess("wrong", [], [1, 1], wrong=3),
        FakeProcess("sorted", [], [1, 1], reordered=False),
    ]
    outcomes, notes = measured(tmp_path, iter(fakes))
    assert [each.contender.name for each in outcomes] == ["good"]
    assert {note.ours_name: note.reason for note in notes} == {
        "broken": "it broke",
        "wrong": "3 samples came with contents or captions that are not theirs",
        "sorted": "two epochs came in the same order",
    }
    assert all(isinstance(note, Note) for note in notes)


def test_where_ours_cannot_be_measured_the_others_stand_in_the_table_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(contender: Contender) -> Any:
        if contender.name.startswith("ours"):
            raise Failed("it broke")
        return nullcontext(FakeProcess(contender.name, [], [7.0]))

    monkeypatch.setattr(loader, "_start", start)
    written, table = tmp_path / "loader.jsonl", tmp_path / "table.md"
    chosen = ["--tasks", "latents", "--workers", "0", "--only", "memmap"]
    assert main(["loader", *SMALL, *chosen, "--json", str(written), "--markdown", str(table)]) == 0
    rows = [json.loads(line) for line in written.read_text(encoding="utf-8").splitlines()[1:]]
    assert [(row["ours_name"], row["reason"]) for row in rows] == [
        ("ours:threads", "it broke"),
        ("memmap", "ours:threads failed"),
    ]
    assert table.read_text(encoding="utf-8").splitlines()[2].startswith("| latents | 0 | memmap | 1 | 7 |")


def test_the_bench_measures_whole_loaders_in_their_own_processes(tmp_path: Path) -> None:
    written, table = tmp_path / "loader.jsonl", tmp_path / "table.md"
    chosen = ["--tasks", "latents", "--workers", "0", "--only", "ours:threads-chosen", "memmap:ring", "zarr_python"]
    assert main(["loader", *SMALL, *chosen, "--json", str(written), "--markdown", str(table)]) == 0
    header, *rows = [json.loads(line) for line in written.read_text(encoding="utf-8").splitlines()]
    assert header["bench"] == "loader"
    assert [row["peer_name"] for row in rows] == ["ours:threads-chosen", "memmap:ring", "zarr_python"]
    for row in rows:
        assert row["ours_name"] == "ours:threads"
        assert row["ours_missing"] == row["ours_doubled"] == 0
        assert row["peer_missing"] == row["peer_doubled"] == 0
        assert row["ratio"] > 0
        assert row["peer_rss_mb"] >= row["peer_private_mb"] > 10
        assert row["peer_store_mb"] > 40 * 4 * 64 * 64 * 2 / 1e6
    assert [line.split(" | ")[2] for line in table.read_text(encoding="utf-8").splitlines()[2:]].count(
        "zarr_python"
    ) == 1


def test_workers_decode_every_picture_once(tmp_path: Path) -> None:
    data, table = tmp_path / "data", tmp_path / "table.md"
    chosen = ["--tasks", "decoded", "--workers", "2", "--only", "memmap", "--data", str(data)]
    assert main(["loader", *SMALL, *chosen, "--markdown", str(table)]) == 0
    rows = [line.strip("| ").split(" | ") for line in table.read_text(encoding="utf-8").splitlines()[2:]]
    assert {tuple(cells[:3]) for cells in rows} == {("decoded", "2", "ours:threads"), ("decoded", "2", "memmap")}
    assert {tuple(cells[-2:]) for cells in rows} == {("0", "0")}
    assert sorted(each.name for each in data.iterdir()) == ["jpegs-40-64", "jpegs-40-64-memmap", "jpegs-40-64-ours"]


def test_pictures_as_bytes_come_out_of_our_store_as_they_are(jpegs: Source, tmp_path: Path) -> None:
    setting = Setting("bytes", jpegs.folder, 0, "reader", size=16)
    ours.write(setting, tmp_path)
    batches = list(ours.epochs(tmp_path, setting)(0))
    assert counts(jpegs, "bytes", batches) == {"missing": 0, "doubled": 0, "wrong": 0}


def test_a_caption_that_was_chosen_is_one_of_the_two(latents: Source, tmp_path: Path) -> None:
    setting = Setting("latents", latents.folder, 0, "threads-chosen", size=16)
    ours.write(setting, tmp_path)
    batches = list(ours.epochs(tmp_path, setting)(0))
    assert [len(batch.original) for batch in batches] == [16, 16, 8]
    assert counts(latents, "latents", batches) == {"missing": 0, "doubled": 0, "wrong": 0}
