from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kolors_zarr.buckets.assign import Bucketing
from kolors_zarr.config import ZarrSource
from kolors_zarr.loading.processes import Processes, _Worker
from kolors_zarr.loading.report import Report
from kolors_zarr.loading.ring import CALLER_HOLDS, Memory, Ring
from kolors_zarr.loading.selection import select
from kolors_zarr.loading.source import ZarrDataSource
from kolors_zarr.loading.threads import Threads
from kolors_zarr.store.layout import group_name, shard_key
from kolors_zarr.store.writing import write_store
from PIL import Image

from kolors_kernel.component import BuildContext
from kolors_kernel.errors import DataError, RunError
from kolors_kernel.values import Sample, SampleRecord

FILLERS = '''
import os, signal, time
from kolors_kernel.errors import DataError

def fill(job, memory):
    """What a job of tests wants: a number is written everywhere, words are done."""
    if job == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if job == "raise":
        raise DataError("this one is bad")
    if job == "break":
        raise RuntimeError("a mistake")
    memory[:] = job % 251
    return job, os.getpid()
'''


@pytest.fixture
def fill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that other processes can import."""
    (tmp_path / "fillers_of_tests.py").write_text(FILLERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "fillers_of_tests", raising=False)
    import fillers_of_tests  # type: ignore[import-not-found]

    return fillers_of_tests.fill


@pytest.fixture
def two(fill: Any) -> Iterator[Processes]:
    processes = Processes(fill, count=2, slot_bytes=64)
    yield processes
    processes.close()
    assert children() == []


def children() -> list[int]:
    """Return the processes that the loading started; others that the tests before left, as spawn's tracker, are not."""
    everyone = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [int(each) for each in everyone if "kolors_zarr" in Path(f"/proc/{each}/cmdline").read_text()]


def lent(filled: Any) -> tuple[Any, Memory]:
    done, slot = filled
    return done[0], slot.lend()


def latents(path: Path, count: int = 24, **settings: Any) -> ZarrDataSource:
    """A source of latents that say their own number, in shards of 4."""
    write_store(
        path,
        (
            Sample(SampleRecord(f"s{i}", (8, 8), {"en_original": f"text {i}"}), latents=torch.full((1, 8, 8), float(i)))
            for i in range(count)
        ),
        shard_rows=4,
    )
    return reopened(path, **settings)


def reopened(path: Path, *, out: Path = Path("runs"), **settings: Any) -> ZarrDataSource:
    captions = {"type": "mix", "dropout": 0}
    config = {"path": str(path), "pictures": "latents", "batch": 4, "captions": captions} | settings
    return ZarrSource.model_validate(config).build(BuildContext(out=out))


def shard(path: Path, number: int, column: str = "latents", axes: int = 4) -> Path:
    return path / shard_key(group_name((8, 8)), column, number, axes=axes)


def flip(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


# The ring


def test_a_slot_is_free_again_when_the_last_view_of_what_was_lent_is_gone() -> None:
    ring = Ring([np.zeros(8, np.uint8)])
    slot = ring.take()
    assert slot is not None and ring.take() is None
    tensor = torch.from_numpy(slot.lend())
    part = tensor[2:4].view(torch.int16)
    del tensor
    gc.collect()
    assert ring.take() is None
    del part
    assert ring.take() is slot


@pytest.mark.parametrize("count", [0, 1, 3])
def test_threads_give_every_batch_in_order_and_never_write_to_one_that_is_held(fill: Any, count: int) -> None:
    threads = Threads(fill, count=count, slot_bytes=64)
    kept = [lent(filled) for filled in threads.filled(range(40))]
    assert [job for job, _ in kept] == list(range(40))
    assert all((memory == job).all() for job, memory in kept)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_loop_that_lets_go_goes_round_in_a_few_slots(fill: Any, count: int) -> None:
    threads = Threads(fill, count=count, slot_bytes=64)
    places = set()
    for _ in range(3):  # the same ones in every epoch
        memory = None
        for filled in threads.filled(range(40)):
            job, memory = lent(filled)
            places.add(memory.ctypes.data)
            assert (memory == job).all()
        del memory, filled
    assert len(places) <= threads.slots


def test_an_error_of_a_thread_comes_where_its_batch_would_have(fill: Any) -> None:
    found = []
    with pytest.raises(DataError, match="this one is bad"):
        for filled in Threads(fill, count=2, slot_bytes=64).filled([0, 1, 2, "raise", 4, 5]):
            found.append(lent(filled)[0])
    assert found == [0, 1, 2]


@pytest.mark.parametrize("count", [0, 2])
def test_an_error_costs_no_slot(fill: Any, count: int) -> None:
    threads = Threads(fill, count=count, slot_bytes=64)
    for _ in range(5):
        with pytest.raises(DataError, match="this one is bad"):
            list(threads.filled(["raise", 1]))
    gc.collect()
    assert [ring.free for ring in threads._idle] == [threads.slots]


def test_breaking_off_ends_the_threads_and_gives_back_their_slots() -> None:
    started = threading.Event()

    def slowly(job: int, memory: Memory) -> tuple[int, int]:
        started.set()
        time.sleep(0.005)
        return job, 0

    threads, before = Threads(slowly, count=2, slot_bytes=64), threading.active_count()
    filled = threads.filled(range(1000))
    next(filled)
    assert started.is_set()
    filled.close()
    assert threading.active_count() == before
    places = {lent(each)[1].ctypes.data for each in threads.filled(range(20))}
    assert len(places) <= threads.slots


# Processes


def test_processes_give_every_batch_in_order_and_copies_to_who_keeps_them(two: Processes) -> None:
    for jobs in (range(30), range(100, 103), ()):
        kept = [(*each[0], each[1].lend()) for each in two.filled(jobs)]
        assert [job for job, _, _ in kept] == list(jobs)
        assert all((memory == job).all() for job, _, memory in kept)
        assert {pid for _, pid, _ in kept} <= set(children())
        assert len({pid for _, pid, _ in kept}) == min(2, len(kept))


def test_small_batches_go_together_and_large_ones_alone(fill: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told = list[int]()
    tell = _Worker.tell

    def noted(worker: _Worker, message: Any) -> None:
        told.extend([len(message)] if isinstance(message, list) else [])
        tell(worker, message)

    monkeypatch.setattr(_Worker, "tell", noted)
    processes = Processes(fill, count=2, slot_bytes=64)
    assert [done for (done, _), _ in processes.filled(range(13))] == list(range(13))
    processes.close()
    assert told == [1, 1, 4, 4, 3]
    assert Processes(fill, count=3, slot_bytes=100 * 2**20).slots == 2 * 3 + CALLER_HOLDS


def test_processes_write_to_no_slot_that_is_lent(two: Processes) -> None:
    filled = two.filled(range(60))
    first, memory = lent(next(filled))
    for _, slot in filled:
        slot.lend()
    assert (memory == first).all()


def test_two_epochs_at_once_have_processes_of_their_own(two: Processes) -> None:
    pairs = list(zip(two.filled(range(10)), two.filled(range(100, 110)), strict=True))
    assert [(one[0][0], other[0][0]) for one, other in pairs] == [(i, 100 + i) for i in range(10)]
    assert len(children()) == 4


def test_an_error_of_a_process_comes_where_its_batch_would_have_and_ends_them_all(two: Processes) -> None:
    found = []
    with pytest.raises(DataError, match="this one is bad"):
        for filled in two.filled([0, 1, 2, "raise", 4, 5]):
            found.append(lent(filled)[0])
    assert found == [0, 1, 2]
    assert children() == []
    assert lent(next(two.filled([7])))[0] == 7


def test_a_killed_process_is_said_to_be_killed(two: Processes) -> None:
    with pytest.raises(RunError, match="was killed by SIGKILL; the system does so when memory runs out"):
        list(two.filled([0, "die", 2, 3]))
    assert children() == []


def test_a_process_that_fails_otherwise_says_why_itself(two: Processes, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunError, match="ended with code 1, see above"):
        list(two.filled([0, "break", 2, 3]))
    assert "RuntimeError: a mistake" in capfd.readouterr().err


def test_breaking_off_ends_the_processes(two: Processes) -> None:
    filled = two.filled(range(1000))
    next(filled)
    assert len(children()) == 2
    filled.close()
    assert children() == []


def test_processes_end_with_the_object_that_started_them(fill: Any) -> None:
    processes = Processes(fill, count=1, slot_bytes=64)
    assert [done for (done, _), _ in processes.filled([1, 2])] == [1, 2]
    assert len(children()) == 1
    del processes
    gc.collect()
    assert children() == []


def test_what_cannot_go_to_a_process_is_refused_at_once() -> None:
    with pytest.raises(RunError, match=r"cannot go to other processes: .*; set processes: 0"):
        Processes(lambda job, memory: job, count=1, slot_bytes=64)


SCRIPT = """
import os
from fillers_of_tests import fill
from kolors_zarr.loading.processes import Processes

processes = Processes(fill, count=2, slot_bytes=64)
while True:
    for _ in processes.filled(range(1000)):
        print(open(f"/proc/self/task/{os.getpid()}/children").read(), flush=True)
"""


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_behind_however_a_run_ends(fill: Any, tmp_path: Path, ending: signal.Signals) -> None:
    command, where = [sys.executable, "-c", SCRIPT], {**os.environ, "PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(command, env=where, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as run:
        assert run.stdout is not None
        pids = [int(each) for each in run.stdout.readline().split()]
        assert len(pids) == 2
        shared = set(os.listdir("/dev/shm"))
        run.send_signal(ending)
        run.stdout.read()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids):
        assert time.monotonic() < deadline, "a process that fills batches outlived its run"
        time.sleep(0.01)
    assert set(os.listdir("/dev/shm")) <= shared


def test_processes_fill_the_batches_that_threads_would_and_do_not_load_torch(tmp_path: Path) -> None:
    source = latents(tmp_path / "s", processes=2)
    wanted = list(reopened(tmp_path / "s", threads=1).batches(seed=1, epoch=2))
    found = list(source.batches(seed=1, epoch=2))
    for one, other in zip(found, wanted, strict=True):
        assert one.latents is not None and other.latents is not None
        assert torch.equal(one.latents, other.latents)
        assert torch.equal(one.size, other.size)
        assert one.captions == other.captions
        assert [record.id for record in one.records] == [record.id for record in other.records]
    assert len(children()) == 2
    for pid in children():
        maps = Path(f"/proc/{pid}/maps").read_text()
        assert "numpy" in maps
        assert "torch" not in maps
    source.close()
    assert children() == []


def test_a_damaged_sample_is_named_by_a_process_too(tmp_path: Path) -> None:
    source = latents(tmp_path / "s", processes=1)
    shard(tmp_path / "s", 3).unlink()
    with pytest.raises(DataError, match=r"samples/8x8/latents/c/3/0/0/0"):
        list(source.batches(seed=0, epoch=0))


# Damaged samples


def test_damaged_samples_are_replaced_by_copies_of_weight_0_counted_and_listed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = latents(tmp_path / "s", damaged="replace", out=tmp_path / "run")
    flip(shard(tmp_path / "s", 1), 10)  # the first sample of the second shard: number 4
    shard(tmp_path / "s", 5).unlink()  # numbers 20 to 23
    for epoch in range(2):
        batches = list(source.batches(seed=0, epoch=epoch))
        assert len(batches) == 6
        counted = [r.id for b in batches for r, w in zip(b.records, b.weight.tolist(), strict=True) if w]
        assert sorted(counted) == sorted(f"s{i}" for i in range(24) if i not in (4, 20, 21, 22, 23))
        for batch in batches:
            assert batch.latents is not None
            shown = [f"s{int(latent[0, 0, 0])}" for latent in batch.latents]
            assert shown == [record.id for record in batch.records]
            assert batch.captions == [f"text {name[1:]}" for name in shown]
    assert source.report().damaged == 5
    lines = [json.loads(line) for line in (tmp_path / "run/quarantine.jsonl").read_text().splitlines()]
    assert sorted(line["id"] for line in lines) == ["s20", "s21", "s22", "s23", "s4"]
    (flipped,) = [line for line in lines if line["id"] == "s4"]
    assert (flipped["key"], flipped["chunk"]) == ("samples/8x8/latents/c/1/0/0/0", 0)
    assert "sample 's4' in chunk 0 is replaced: the chunk does not match its checksum" in caplog.text
    assert caplog.text.count("'s4'") == 1


def test_a_batch_that_is_damaged_as_a_whole_is_filled_from_elsewhere(tmp_path: Path) -> None:
    source = latents(tmp_path / "s", damaged="replace", batch=1, out=tmp_path / "run")
    for number in (0, 1, 2):
        shard(tmp_path / "s", number).unlink()
    batches = list(source.batches(seed=0, epoch=0))
    assert len(batches) == 24
    assert sum(float(batch.weight.sum()) for batch in batches) == 12
    assert all(int(batch.records[0].id[1:]) >= 12 for batch in batches)


def test_a_store_without_a_sound_sample_is_an_error_all_the_same(tmp_path: Path) -> None:
    source = latents(tmp_path / "s", damaged="replace", out=tmp_path / "run")
    for number in range(6):
        shard(tmp_path / "s", number).unlink()
    with pytest.raises(DataError, match="latents"):
        list(source.batches(seed=0, epoch=0))


def test_pictures_that_cannot_be_decoded_are_replaced_too(tmp_path: Path) -> None:
    def samples() -> Iterator[Sample]:
        for i in range(6):
            file = BytesIO()
            Image.new("RGB", (8, 8), (i, 0, 0)).save(file, "PNG")
            data = file.getvalue() if i != 2 else file.getvalue()[:40]
            yield Sample(SampleRecord(f"s{i}", (8, 8), {"en_original": "a"}), data)

    write_store(tmp_path / "s", samples())
    source = reopened(
        tmp_path / "s", out=tmp_path, pictures="images", buckets={"type": "square", "side": 8}, damaged="replace"
    )
    batches = list(source.batches(seed=0, epoch=0))
    counted = [r.id for b in batches for r, w in zip(b.records, b.weight.tolist(), strict=True) if w]
    assert sorted(counted) == ["s0", "s1", "s3", "s4", "s5"]
    assert "cannot be decoded" in (tmp_path / "quarantine.jsonl").read_text()


def test_a_part_with_a_damaged_sample_is_not_given_out_in_part(tmp_path: Path) -> None:
    source = latents(tmp_path / "s", damaged="replace", out=tmp_path / "run")
    flip(shard(tmp_path / "s", 1), 10)
    first, second, *_ = source.parts(4)
    assert sum(len(batch.records) for batch in source.read(first)) == 4
    with pytest.raises(DataError, match="'s4'"):
        list(source.read(second))


# Selection


def test_a_filter_that_says_what_it_reads_is_asked_once_for_each_combination(tmp_path: Path) -> None:
    def samples() -> Iterator[Sample]:
        for i in range(60):
            tags = {"a": str(i % 3), "b": str(i % 4), "name": f"n{i}"}
            if i % 5 == 0:
                del tags["a"]
            yield Sample(SampleRecord(f"s{i}", (8, 8), {"en_original": "x"}, tags), latents=torch.zeros(1, 1, 1))

    class Spy:
        def __init__(self, reads: frozenset[str] | None) -> None:
            self.asked = list[dict[str, str]]()
            if reads is not None:
                self.reads = reads

        def reason_to_drop(self, record: SampleRecord) -> str | None:
            tags = dict(record.tags)
            self.asked.append(tags)
            return None if tags.get("a") == "1" and tags["b"] != "2" else f"a is {tags.get('a')}"

    write_store(tmp_path / "s", samples(), shard_rows=16)
    source = reopened(tmp_path / "s")
    found, asked = [], []
    for spy in (Spy(frozenset("ab")), Spy(None)):
        report = Report("s", 60)
        (bucket,) = select(source.store, None, filters=[("spy", spy)], requires=(), report=report)
        found.append((list(bucket.numbers), report.dropped))
        asked.append(len(spy.asked))
    assert asked == [12 + 4, 60]
    assert found[0] == found[1]
    assert found[0][0] == [i for i in range(60) if i % 5 and i % 3 == 1 and i % 4 != 2]


def test_buckets_of_groups_need_no_memory_for_their_numbers(tmp_path: Path) -> None:
    source = latents(tmp_path / "s")
    assert [bucket.numbers for bucket in source._buckets] == [range(24)]


def test_groups_that_were_made_by_the_same_buckets_are_the_buckets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = ((8, 16), (16, 8))
    samples = [
        Sample(SampleRecord(f"s{i}", sizes[i % 2], {"en_original": "x"}), image=b"never decoded here") for i in range(6)
    ]
    write_store(tmp_path / "s", samples, size_of=lambda sample: sample.record.size, buckets=sizes)
    asked = []
    original = Bucketing.assign
    monkeypatch.setattr(Bucketing, "assign", lambda self, *sizes: asked.append(1) or original(self, *sizes))
    settings = {"pictures": "images", "buckets": {"type": "sizes", "table": sizes}}
    assert {b.size: len(b.numbers) for b in reopened(tmp_path / "s", **settings)._buckets} == dict.fromkeys(sizes, 3)
    assert not asked
    settings["buckets"] = {"type": "sizes", "table": [*sizes, (8, 8)]}
    assert {b.size: len(b.numbers) for b in reopened(tmp_path / "s", **settings)._buckets} == dict.fromkeys(sizes, 3)
    assert asked


def test_the_fingerprint_tells_stores_and_selections_apart(tmp_path: Path) -> None:
    whole = latents(tmp_path / "s")
    other = latents(tmp_path / "other", count=23)
    level = {"type": "tags", "without": {"x": ["y"]}}
    assert whole.fingerprint == reopened(tmp_path / "s", batch=7, filters=[level]).fingerprint
    assert whole.fingerprint != other.fingerprint


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU to copy to")
@pytest.mark.parametrize("processes", [0, 1])
def test_batches_for_a_gpu_are_pinned_and_stay_as_they_are_while_they_are_copied(
    tmp_path: Path, processes: int
) -> None:
    latents(tmp_path / "s")
    config = ZarrSource(path=str(tmp_path / "s"), pictures="latents", batch=4, threads=1, processes=processes)
    source = config.build(BuildContext(device="cuda"))
    for epoch in range(20):
        copies = []
        for batch in source.batches(seed=0, epoch=epoch):
            assert batch.latents is not None and batch.latents.is_pinned()
            copies.append(([r.id for r in batch.records], batch.latents.to("cuda", non_blocking=True)))
            del batch
        torch.cuda.synchronize()
        for names, copied in copies:
            assert [f"s{int(latent[0, 0, 0])}" for latent in copied.cpu()] == names
