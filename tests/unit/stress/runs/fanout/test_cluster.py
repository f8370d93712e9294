"""Tasks on a cluster, with one made up: how many at a time, what becomes of them, and what ends
it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest

from stress.runs.fanout import dask, spread
from stress.runs.fanout.cluster import ClusterLost, run_on
from stress.runs.fanout.dask import (
    DaskCluster,
    _check_packages,
    _check_workers,
    cluster_at,
    first_slots,
)
from stress.runs.fanout.identity import identity
from stress.runs.fanout.remote import RemoteBatch, VersionSkew
from stress.runs.fanout.spread import Workers
from stress.runs.fanout.task import FanoutTask, Trouble
from stress.scenario.errors import StressError
from tests.unit.stress.runs.fanout import tasks

CAMPAIGN = RemoteBatch("stress-test", identity())
ADDING = [FanoutTask(tasks.add, (number, 1), 5.0) for number in range(6)]


class Future:
    """What a client gives for a task."""

    def __init__(self, key: str, status: str, value: Any) -> None:
        self.key, self.status, self.value = key, status, value

    def add_done_callback(self, callback: Callable[[Future], None]) -> None:
        callback(self)

    def result(self) -> Any:
        return self.value

    def exception(self) -> Any:
        return self.value


class Client:
    """A scheduler's client that carries out tasks here and at once; `fate` decides of some what
    becomes of them instead."""

    def __init__(
        self,
        threads: dict[str, int] | None = None,
        fate: Callable[[FanoutTask], tuple[str, Any] | None] = lambda _: None,
    ) -> None:
        self.threads = {"tcp://a:1": 2} if threads is None else threads
        self.fate = fate
        self.cancelled: list[str] = []
        self.told: list[tuple[Any, ...]] = []
        self.answers: dict[str, Any] = {}
        self.closed = False

    def nthreads(self) -> dict[str, int]:
        return self.threads

    def submit(
        self, _call: Any, _batch: RemoteBatch, task: FanoutTask, *, key: str, pure: bool
    ) -> Future:
        assert not pure
        return Future(key, *(self.fate(task) or ("finished", task.call(*task.args))))

    def cancel(self, futures: list[Future], *, force: bool) -> None:
        assert force
        self.cancelled += [future.key for future in futures]

    def run(self, call: Any, *args: Any, on_error: str) -> dict[str, Any]:
        self.told.append((call.__name__, *args))
        return self.answers

    def close(self, timeout: float) -> None:
        assert timeout > 0
        self.closed = True


def on(client: Client, given: list[FanoutTask] = ADDING, **options: Any) -> dict[int, Any]:
    found: dict[int, Any] = {}
    run_on(DaskCluster(client, CAMPAIGN), given, found.__setitem__, **options)
    return found


def test_results_come_with_the_numbers_of_their_tasks() -> None:
    assert on(Client()) == {number: number + 1 for number in range(6)}


class Crowd:
    """A cluster that grows, and notes how many tasks it has at a time."""

    def __init__(self) -> None:
        self.running: SimpleQueue[int] = SimpleQueue()
        self.most: list[int] = []

    def places(self) -> int:
        return 1 if len(self.most) < 3 else 4

    def start(self, number: int, task: FanoutTask) -> None:
        assert task is ADDING[number]
        self.running.put(number)
        self.most.append(self.running.qsize())

    def next_end(self, timeout_s: float) -> tuple[int, Any] | None:
        assert timeout_s > 0
        return self.running.get_nowait(), "done"


@pytest.mark.parametrize(("at_most", "most"), [(None, [1, 1, 1, 1, 2, 3]), (2, [1, 1, 1, 1, 2, 2])])
def test_workers_that_come_later_are_used_but_never_more_than_asked_for(
    at_most: int | None, most: list[int]
) -> None:
    crowd, found = Crowd(), []
    run_on(crowd, ADDING, lambda number, _: found.append(number), at_most)
    assert sorted(found) == [*range(6)]
    assert crowd.most == most


def test_nothing_is_begun_when_the_time_is_up() -> None:
    assert on(Client(), until=time.monotonic() - 1) == {}


def test_a_task_that_ends_its_workers_is_trouble_and_the_others_go_on() -> None:
    class KilledWorker(Exception):
        pass

    def fate(task: FanoutTask) -> tuple[str, Any] | None:
        return ("error", KilledWorker("4 workers died")) if task.args[0] == 2 else None

    found = on(Client(fate=fate))
    assert found[2] == Trouble("KilledWorker: 4 workers died")
    assert len(found) == 6


def test_a_result_that_dies_with_its_worker_is_waited_for_again() -> None:
    waited: list[Future] = []

    class Late(Future):
        def add_done_callback(self, callback: Callable[[Future], None]) -> None:
            if waited:
                self.status, self.value = "finished", 77
            waited.append(self)
            callback(self)

    class Forgetful(Client):
        def submit(self, *args: Any, key: str, pure: bool) -> Future:
            done = super().submit(*args, key=key, pure=pure)
            return Late(key, "lost", None) if done.value == 3 else done

    assert on(Forgetful()) == {0: 1, 1: 2, 2: 77, 3: 4, 4: 5, 5: 6}
    assert len(waited) == 2


@pytest.mark.parametrize(
    ("status", "value", "why"),
    [
        ("cancelled", None, "connection to the Dask scheduler was lost"),
        ("error", VersionSkew("tcp://b:1: tdp-stress 0.2"), "tcp://b:1: tdp-stress 0.2"),
        (
            "error",
            ModuleNotFoundError("No module named 'stress'"),
            "No module named 'stress'; install the same version",
        ),
    ],
)
def test_what_makes_the_rest_pointless_ends_it_and_what_there_is_stays(
    status: str, value: Any, why: str
) -> None:
    client = Client({"tcp://a:1": 1}, lambda task: (status, value) if task.args[0] == 2 else None)
    found: dict[int, Any] = {}
    with pytest.raises(ClusterLost, match=why):
        run_on(DaskCluster(client, CAMPAIGN), ADDING, found.__setitem__)
    assert found == {0: 1, 1: 2}


def test_a_cluster_without_workers_is_given_up_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter([0.0, 59.0, 61.0])
    monkeypatch.setattr(dask, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    cluster = DaskCluster(Client({}), CAMPAIGN)
    assert cluster.places() == 1
    assert cluster.next_end(0) is None
    assert cluster.next_end(0) is None
    with pytest.raises(ClusterLost, match="no worker for 60 s"):
        cluster.next_end(0)


def test_a_worker_that_comes_in_time_is_waited_for_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 70.0, 120.0])
    monkeypatch.setattr(dask, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    client = Client({})
    cluster = DaskCluster(client, CAMPAIGN)
    cluster.next_end(0)
    client.threads = {"tcp://a:1": 1}
    cluster.next_end(0)
    client.threads = {}
    assert cluster.next_end(0) is None
    assert cluster.next_end(0) is None


def test_what_is_running_is_given_up_on_both_sides() -> None:
    client = Client()
    cluster = DaskCluster(client, CAMPAIGN)
    cluster.start(7, ADDING[0])
    cluster.close()
    assert client.cancelled == ["stress-test-7"]
    assert client.told == [("end", "stress-test")]
    assert client.closed


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    """What is connected to."""
    made = Client()
    versions = {"packages": dict.fromkeys(dask.SAME, "1")}
    made.get_versions = lambda: {"client": versions, "scheduler": versions, "workers": {}}  # type: ignore[attr-defined]
    monkeypatch.setattr(dask, "_connect", lambda _: made)
    return made


def test_the_whole_way_there_and_back(client: Client) -> None:
    found: dict[int, Any] = {}
    assert spread.spread(ADDING, Workers(0, "tcp://a:1"), found.__setitem__) == ""
    assert found == {number: number + 1 for number in range(6)}
    assert client.closed
    assert spread.places("tcp://a:1") == 2


def test_a_loss_on_the_way_is_told_and_not_raised(client: Client) -> None:
    client.fate = lambda _: ("cancelled", None)
    assert "lost" in spread.spread(ADDING, Workers(0, "tcp://a:1"), lambda *_: None)
    assert client.closed


def test_a_worker_that_does_not_fit_is_refused_before_anything_begins(client: Client) -> None:
    client.answers = {
        "tcp://a:1": (),
        "tcp://b:1": ("tdp-stress 0.2, here it is 0.1",),
        "tcp://c:1": ImportError("No module named 'x'"),
    }
    with pytest.raises(StressError) as error:
        spread.spread(ADDING, Workers(0, "tcp://a:1"), lambda *_: None)
    assert str(error.value).splitlines()[1:] == [
        "  tcp://b:1: tdp-stress 0.2, here it is 0.1",
        "  tcp://c:1: No module named 'x'",
    ]
    assert client.closed
    with pytest.raises(VersionSkew):
        _check_workers(client, CAMPAIGN)


def test_packages_that_carry_the_tasks_must_agree() -> None:
    def packages(**changes: str) -> dict[str, Any]:
        return {"packages": {**dict.fromkeys(dask.SAME, "1"), "numpy": "whatever", **changes}}

    _check_packages(
        {
            "client": packages(),
            "scheduler": packages(numpy="other"),
            "workers": {"tcp://a:1": packages()},
        }
    )
    with pytest.raises(
        VersionSkew,
        match=r"the scheduler: dask 2, here it is 1\n  tcp://a:1: python 3, here it is 1",
    ):
        _check_packages(
            {
                "client": packages(),
                "scheduler": packages(dask="2"),
                "workers": {"tcp://a:1": packages(python="3")},
            }
        )


def test_without_dask_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(StressError, match=r"pip install 'tdp-stress\[campaign\]'"),
        cluster_at("tcp://127.0.0.1:1"),
    ):
        pass


def test_workers_of_one_machine_have_places_of_their_own() -> None:
    found = first_slots({"tcp://b:2": 1, "tcp://a:1": 2, "tcp://b:1": 1, "tcp://a:2": 3})
    assert sorted(found[address] for address in ("tcp://b:1", "tcp://b:2")) == [0, 1]
    assert (found["tcp://a:1"], found["tcp://a:2"]) == (0, 2)
