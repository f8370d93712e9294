"""Ctrl-C at any moment: the main thread never waits for what has come already, nobody runs while
others are unwound, and the next schedule is what it would have been."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from stress.engines.carrier import POOL, Carrier
from stress.engines.carrier_choice import THREADS
from stress.engines.controlled import ControlledRuntime
from stress.engines.program import Executor, ProgramTask
from stress.search.random_walk import RandomWalk
from tests.patience import PATIENCE
from tests.unit.stress.search.programs import PROTOCOL, Body, Small

if TYPE_CHECKING:
    from stress.engines.greenlets import GreenletCarrier

pytestmark = pytest.mark.usefixtures("carrier")

EXPECTED = Executor(PROTOCOL).execute(RandomWalk(7)).trace
BEFORE, AFTER, EARLY = "before", "after", "early"


class Interrupted:
    """A signal whose waits or sets by the main thread end as planned: in an interrupt BEFORE
    anything has happened or AFTER it (the wake-up is swallowed), or EARLY, though nobody has woken
    it. Waiting for what will never come fails."""

    def __init__(self, *plan: str) -> None:
        self._plan = iter(plan)
        self.waiting = threading.Event()
        """Somebody has come to wait."""
        self._tokens = threading.Semaphore(0)

    def wait(self) -> None:
        self.waiting.set()
        self._do(self._take)

    def wait_for(self, seconds: float) -> bool:
        self.wait()
        return True

    def set(self) -> None:
        self._tokens.release()

    def _take(self) -> None:
        assert self._tokens.acquire(timeout=PATIENCE), (
            "the main thread waits for what has come already"
        )

    def _do(self, what: Callable[[], object]) -> None:
        plan = next(self._plan, "")
        if plan == BEFORE:
            raise KeyboardInterrupt
        if plan != EARLY:
            what()
        if plan == AFTER:
            raise KeyboardInterrupt


class Told(Interrupted):
    """A carrier's own signal, whose sets by the main thread end as planned."""

    def __init__(self, inner: Callable[[], object], *plan: str) -> None:
        super().__init__(*plan)
        self._inner = inner

    def set(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._do(self._inner)
        else:
            self._inner()


class Endless:
    """Tasks that write without end, once they have been let to; `steps` counts what they have
    done."""

    def __init__(self) -> None:
        self.steps = 0
        self.unwound = 0
        self.program = Small("endless", self._make)

    def _make(self, runtime: ControlledRuntime) -> Body:
        word = runtime.counter("word")

        def write() -> None:
            try:
                while True:
                    word.add(1)
                    self.steps += 1
            finally:
                self.unwound += 1

        return Body([ProgramTask("one", write), ProgramTask("two", write)])

    def interrupted(self) -> None:
        """Run until the planned interrupt."""
        with pytest.raises(KeyboardInterrupt):
            Executor(self.program, limit=1 << 60).execute(RandomWalk(1))


def _must(happened: bool) -> None:
    assert happened


def seat(carrier: str, number: int) -> Carrier | GreenletCarrier:
    """What task `number` of the next schedule runs on."""
    if carrier == THREADS:
        return POOL.carrier(number)
    assert POOL.hub is not None
    return POOL.hub.carrier(number)


def anybody_left() -> bool:
    """Whether a task is still where an interrupt has left it."""
    return any(each.busy for each in POOL._carriers) or (
        POOL.hub is not None and POOL.hub.left_behind
    )


@pytest.fixture(autouse=True)
def _as_ever(carrier: str) -> Iterator[None]:
    """Whatever has happened, the next schedules are what they always are."""
    Executor(PROTOCOL).execute(RandomWalk(7))
    yield
    assert [Executor(PROTOCOL).execute(RandomWalk(7)).trace for _ in range(3)] == [EXPECTED] * 3


def test_an_interrupt_that_swallows_the_end_of_the_schedule(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    signal = Interrupted(AFTER)
    monkeypatch.setattr(POOL, "main", signal)
    late = Small(
        "late", lambda _: Body([ProgramTask("late", lambda: _must(signal.waiting.wait(PATIENCE)))])
    )
    with pytest.raises(KeyboardInterrupt):
        Executor(late).execute(RandomWalk(7))


def test_an_interrupt_while_tasks_run_stops_and_unwinds_them_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(POOL, "main", Interrupted(BEFORE))
    endless = Endless()
    endless.interrupted()
    done = endless.steps
    Executor(PROTOCOL).execute(RandomWalk(7))
    assert endless.steps == done
    assert not anybody_left()


def test_a_wake_up_that_means_nothing_is_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(POOL, "main", Interrupted(EARLY, EARLY, EARLY))
    assert Executor(PROTOCOL).execute(RandomWalk(7)).trace == EXPECTED


@pytest.mark.parametrize(
    "plan",
    [
        (BEFORE, BEFORE),
        (BEFORE, AFTER),
        (BEFORE, "", BEFORE),
        (BEFORE, "", AFTER),
        (BEFORE, "", "", BEFORE),
    ],
    ids="-".join,
)
def test_an_impatient_second_interrupt(
    plan: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the tasks are stopped, or while one is unwound: who is left behind disturbs nobody."""
    monkeypatch.setattr(POOL, "main", Interrupted(*plan))
    Endless().interrupted()


@pytest.mark.parametrize("plan", [(BEFORE,), (AFTER,), ("", BEFORE), ("", AFTER)], ids="-".join)
@pytest.mark.parametrize("number", [1, 2])
def test_an_interrupt_while_a_task_is_told(
    number: int, plan: tuple[str, ...], carrier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the first one is let go, or when it is told to unwind; and whether it has been told."""
    signal = seat(carrier, number).signal
    monkeypatch.setattr(signal, "set", Told(signal.set, *plan).set)
    if "" in plan:
        monkeypatch.setattr(POOL, "main", Interrupted(BEFORE))
    elif number == 2:
        monkeypatch.setattr(
            RandomWalk, "begin", lambda _, scheduler: lambda: scheduler.runnable[-1]
        )
    Endless().interrupted()


def test_an_interrupt_ends_a_spin_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is explored there, so no limit of steps would ever end it."""

    def make(runtime: ControlledRuntime) -> Body:
        word = runtime.cell("word", 0)

        def spin() -> None:
            while not word.value:
                runtime.relax()

        return Body([ProgramTask("spins", spin)], has_start=True)

    monkeypatch.setattr(POOL, "main", Interrupted(BEFORE))
    with pytest.raises(KeyboardInterrupt):
        Executor(Small("spinning", make)).execute(RandomWalk(1))
    assert not anybody_left()
