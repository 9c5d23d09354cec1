"""Real processes, really killed. What holds for two processes of a pool holds for two Ray actors."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from kolors_workers.config import Pool, Ray
from kolors_workers.handing_out import WorkerDied, hand_out
from kolors_workers.pool import ProcessPool
from kolors_zarr.store.damage import Damage, DamagedSamples

from kolors_kernel import BuildContext
from kolors_kernel.errors import DataError, Interrupted, KolorsError, MissingDependency, RecipeError, RunError
from kolors_kernel.protocols import Workers

ROOT = Path(__file__).resolve().parents[2]
LONG = 600  # seconds of sleep that no test waits for
PATIENCE = 60  # seconds after which a test that waits has failed


class Work:
    """What the workers do: the first word of an item says which. It counts how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, item: tuple[Any, ...]) -> Any:
        self.calls += 1
        name, *details = item
        return getattr(self, name)(*details)

    def count(self) -> tuple[int, int]:
        return os.getpid(), self.calls

    def variable(self, name: str) -> str | None:
        return os.environ.get(name)

    def log(self, text: str) -> None:
        logging.getLogger("work").info(text)

    def fail(self, kind: type[BaseException], *arguments: Any) -> None:
        raise kind(*arguments)

    def exit(self, code: int) -> None:
        os._exit(code)

    def interrupt(self) -> str:
        os.kill(os.getpid(), signal.SIGINT)
        return "undisturbed"

    def give_a_lambda(self) -> Callable[[], None]:
        return lambda: None

    def die(self, times: int, tries: Path) -> int:
        with tries.open("a") as file:
            file.write("x")
        if tries.stat().st_size <= times:
            os.kill(os.getpid(), signal.SIGKILL)
        return tries.stat().st_size

    def meet(self, mine: Path, theirs: Path) -> str:
        mine.write_text(str(os.getpid()))
        wait_until(theirs.exists)
        return mine.name

    def sleep(self, mine: Path) -> None:
        mine.write_text(str(os.getpid()))
        time.sleep(LONG)

    def signal(self, number: int, caller: int, mine: Path, theirs: Path) -> None:
        self.meet(mine, theirs)
        os.kill(caller, number)
        time.sleep(LONG)


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_gone(written: Path) -> bool:
    try:
        os.kill(int(written.read_text()), 0)
    except ProcessLookupError:
        return True
    return False


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'kolors-kernel[ray]'")
    handler = signal.getsignal(signal.SIGTERM)
    ray.init("local", num_cpus=2, include_dashboard=False)
    signal.signal(signal.SIGTERM, handler)
    yield
    ray.shutdown()


@pytest.fixture(params=["pool", pytest.param("ray", marks=pytest.mark.slow)])
def two(request: pytest.FixtureRequest) -> Workers:
    if request.param == "pool":
        return Pool(count=2).build(BuildContext())
    request.getfixturevalue("ray_here")
    return Ray(count=2).build(BuildContext())


@pytest.fixture
def pool() -> Workers:
    return Pool(count=2).build(BuildContext())


@pytest.fixture
def stopping() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number, "what was finished is kept")

    # A shell starts what runs in the background with Ctrl-C ignored.
    handlers = {signal.SIGTERM: stop, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_one_worker_is_this_very_process_and_nothing_is_pickled() -> None:
    given = object()
    [(item, made)] = Pool().build(BuildContext()).map(lambda: lambda it: (it, os.getpid()), [given])
    assert item is given
    assert made == (given, os.getpid())


def test_a_worker_makes_its_function_once_and_keeps_it(two: Workers) -> None:
    calls = defaultdict(list)
    for _, (pid, call) in two.map(Work, [("count",)] * 12):
        calls[pid].append(call)
    assert len(calls) <= 2
    assert os.getpid() not in calls
    assert all(found == list(range(1, len(found) + 1)) for found in calls.values())


def test_two_work_at_the_same_time(two: Workers, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    assert sorted(made for _, made in two.map(Work, [("meet", one, other), ("meet", other, one)])) == ["one", "other"]
    assert one.read_text() != other.read_text()


def test_what_is_finished_first_comes_first(two: Workers, tmp_path: Path) -> None:
    slow, quick, order = ("meet", tmp_path / "begun", tmp_path / "go"), ("count",), []
    for item, _ in two.map(Work, [slow, quick]):
        order.append(item)
        (tmp_path / "go").touch()
    assert order == [quick, slow]


class Parcel(tuple[str]):
    """An item that counts how many of its class were packed to be sent."""

    packed = 0

    def __reduce__(self) -> tuple[type[tuple[str]], tuple[tuple[str]]]:
        Parcel.packed += 1
        return tuple, (tuple(self),)


def test_an_item_is_handed_out_only_when_a_worker_is_free(two: Workers) -> None:
    Parcel.packed = 0
    for received, _ in enumerate(two.map(Work, [Parcel(("count",)) for _ in range(30)]), start=1):
        assert Parcel.packed <= received + 2
    assert Parcel.packed == 30


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [(DataError, ("no such store",)), (Interrupted, (signal.SIGINT, "all is kept"))],  # pickle fails on the second
)
def test_an_error_of_ours_arrives_as_it_is(two: Workers, kind: type[KolorsError], arguments: tuple[Any, ...]) -> None:
    with pytest.raises(kind) as caught:
        list(two.map(Work, [("fail", kind, *arguments)]))
    assert str(caught.value) == str(kind(*arguments))


def test_an_error_of_ours_keeps_what_it_knows(two: Workers) -> None:
    damages = [Damage(4, "cat", "samples/any/image/c/0", 4, "the chunk is not there")]
    with pytest.raises(DamagedSamples) as caught:
        list(two.map(Work, [("fail", DamagedSamples, "store", damages)]))
    assert caught.value.numbers == (4,) and caught.value.damages == tuple(damages)
    with pytest.raises(Interrupted) as interrupted:
        list(two.map(Work, [("fail", Interrupted, signal.SIGTERM, "all is kept")]))
    assert interrupted.value.exit_code == 128 + signal.SIGTERM


@pytest.mark.parametrize("count", [1, 2])
def test_any_other_error_names_the_item_and_its_place(count: int) -> None:
    with pytest.raises(RunError) as caught:
        list(Pool(count=count).build(BuildContext()).map(Work, [("fail", KeyError, "depth")]))
    text = str(caught.value)
    assert text.startswith("the work on ('fail', <class 'KeyError'>, 'depth') failed:\n")
    assert text.endswith("KeyError: 'depth'")
    assert "test_kolors_workers.py" in text
    assert "in fail" in text


def fail_to_make() -> Any:
    raise ValueError("no weights here")


def test_what_cannot_be_made_or_sent_back_is_an_error_too(two: Workers) -> None:
    with pytest.raises(RunError, match="no weights here"):
        list(two.map(fail_to_make, [1]))
    if isinstance(two, ProcessPool):  # Ray can send a lambda
        with pytest.raises(RunError, match=r"the work on \('give_a_lambda',\) failed"):
            list(two.map(Work, [("give_a_lambda",)]))


def test_a_killed_worker_costs_its_item_only_which_is_tried_again(
    two: Workers, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    items = [("count",), ("die", 2, tmp_path / "tries"), ("count",), ("count",)]
    found = list(two.map(Work, items))
    assert sorted(item[0] for item, _ in found) == ["count", "count", "count", "die"]
    assert dict(found)["die", 2, tmp_path / "tries"] == 3
    warned = [record.getMessage() for record in caplog.records if record.name.startswith("kolors_workers")]
    assert len(warned) == 2
    assert all(text.startswith("a worker died on ('die', 2,") for text in warned)
    assert all(("SIGKILL" if isinstance(two, ProcessPool) else "worker process has died") in text for text in warned)


def test_an_item_that_kills_three_workers_ends_the_work(two: Workers, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"3 workers died on \('die', 9,.*the last"):
        list(two.map(Work, [("die", 9, tmp_path / "tries")]))
    assert (tmp_path / "tries").read_text() == "xxx"


def test_a_worker_that_leaves_has_died(pool: Workers) -> None:
    with pytest.raises(RunError, match=r"3 workers died on \('exit', 7\), the last: exit code 7"):
        list(pool.map(Work, [("exit", 7)]))


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGTERM, Interrupted), (signal.SIGINT, KeyboardInterrupt)])
@pytest.mark.usefixtures("stopping")
def test_a_signal_to_the_caller_ends_every_worker(
    two: Workers, tmp_path: Path, number: int, raised: type[BaseException]
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    with pytest.raises(raised):
        list(two.map(Work, [("sleep", one), ("signal", number, os.getpid(), other, one), ("count",)]))
    wait_until(lambda: is_gone(one) and is_gone(other))


def test_a_ctrl_c_that_reaches_the_workers_too_is_left_to_the_caller(
    pool: Workers, caplog: pytest.LogCaptureFixture
) -> None:
    assert [made for _, made in pool.map(Work, [("interrupt",)])] == ["undisturbed"]
    assert not caplog.records


def test_leaving_early_ends_every_worker(two: Workers, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    done = two.map(Work, [("sleep", one), ("meet", other, one), ("count",)])
    assert next(iter(done))[1] == "other"
    done.close()  # type: ignore[attr-defined]
    wait_until(lambda: is_gone(one) and is_gone(other))


DRIVER = f"""
import os, signal, sys
from pathlib import Path
from kolors_kernel import BuildContext
from kolors_workers.config import Pool
from {__name__} import Work
one, other = Path(sys.argv[1], "one"), Path(sys.argv[1], "other")
items = [("sleep", one), ("signal", signal.SIGKILL, os.getpid(), other, one)]
list(Pool(count=2).build(BuildContext()).map(Work, items))
"""


def test_workers_of_a_killed_caller_end_in_the_middle_of_their_items(tmp_path: Path) -> None:
    # The pipe to here ends when the last process that inherited it has ended.
    command = [sys.executable, "-c", DRIVER, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("given", [None, "7"])
def test_processes_share_the_cores_unless_told_otherwise(
    pool: Workers, monkeypatch: pytest.MonkeyPatch, given: str | None
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    [(_, found)] = pool.map(Work, [("variable", "OMP_NUM_THREADS")])
    assert found == (given or str(max(1, len(os.sched_getaffinity(0)) // 2)))


def test_what_workers_log_at_the_level_of_the_caller_is_on_stderr(
    pool: Workers, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    list(pool.map(Work, [("log", "halfway through")]))
    assert "halfway through\n" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_ray_refuses_what_this_machine_can_never_give(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda address: None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    for settings, said in (({"count": 3}, "3 CPUs, and this machine has 2"), ({"gpus": 0.5}, "0.5 GPUs, and .* has 0")):
        with pytest.raises(RecipeError, match=said):
            list(Ray(**settings).build(BuildContext()).map(Work, [("count",)]))


def test_without_ray_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "kolors_workers.ray_actors", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependency, match=r"kolors-kernel\[ray\]"):
        Ray().build(BuildContext())


class Scripted:
    """A worker that answers by the item: an error to "bad", a death to "fatal", else the item in capitals."""

    def __init__(self, crew: list[Scripted]) -> None:
        self.item, self.closed = "", False
        crew.append(self)

    def begin(self, item: str) -> None:
        self.item = item

    def answer(self) -> bytes:
        if self.item == "fatal":
            raise WorkerDied("SIGKILL")
        return pickle.dumps((DataError, "bad", {}) if self.item == "bad" else (None, self.item.upper(), {}))

    def close(self) -> None:
        self.closed = True


def test_after_a_failure_nothing_more_begins_and_what_is_there_is_given() -> None:
    crew: list[Scripted] = []
    timeouts, found = [], []

    def wait(workers: list[Scripted], timeout: float | None) -> list[Scripted]:
        timeouts.append(timeout)
        return workers[:1]

    with pytest.raises(DataError, match="bad"):
        for pair in hand_out(["bad", "fatal", "good", "later"], count=3, hire=lambda: Scripted(crew), wait=wait):
            found.append(pair)
    assert found == [("good", "GOOD")]
    assert timeouts == [None, 0, 0]
    assert [worker.item for worker in crew] == ["bad", "fatal", "good"]
    assert all(worker.closed for worker in crew)


def test_a_worker_with_nothing_left_to_do_makes_room_at_once() -> None:
    crew: list[Scripted] = []
    done = hand_out(["a", "b"], count=2, hire=lambda: Scripted(crew), wait=lambda workers, timeout: workers[:1])
    assert next(done) == ("a", "A")
    assert [worker.closed for worker in crew] == [True, False]
    assert list(done) == [("b", "B")]
