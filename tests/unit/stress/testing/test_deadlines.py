"""Waits that end by time under `explore`: those that end at about the same time end in any
order."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

import pytest

from stress.testing import ScheduleFailed, explore, replay
from tests.unit.stress.testing.programs import EVERYTHING, failure_of, proved, together


def lost_after(*seconds: float) -> set[int]:
    """What the counter can be after tasks have slept and then added 1 to it without a lock."""
    ends: set[int] = set()

    def program() -> None:
        class Count:
            n = 0

        def add(pause: float) -> None:
            time.sleep(pause)
            Count.n += 1

        together(*(lambda pause=pause: add(pause) for pause in seconds))
        ends.add(Count.n)

    assert explore(program, EVERYTHING).exhausted
    return ends


def test_tasks_that_wake_at_the_same_time_race() -> None:
    assert lost_after(1, 1) == {1, 2}
    assert lost_after(2, 2.5) == {1, 2}
    assert lost_after(1, 1, 1) == {1, 2, 3}


def test_a_second_apart_is_an_order() -> None:
    assert lost_after(1, 2) == {2}


def test_timers_of_one_deadline_race() -> None:
    def program() -> None:
        class Count:
            n = 0

        def add() -> None:
            Count.n += 1

        timers = [threading.Timer(1, add) for _ in range(2)]
        for timer in timers:
            timer.start()
        for timer in timers:
            timer.join()
        assert Count.n == 2

    assert "both read Count.n = 0 before either wrote it" in failure_of(program)


def test_a_wait_whose_time_is_over_ends_whatever_is_written_meanwhile() -> None:
    """Both waits are over at 1 s; the event is set and cleared before the first looks again."""
    results: set[tuple[bool, ...]] = set()

    def program() -> None:
        event = threading.Event()
        seen: list[bool] = []

        def pulse() -> None:
            time.sleep(1)
            event.set()
            event.clear()

        together(lambda: seen.append(event.wait(1.5)), pulse)
        results.add(tuple(seen))

    proved(program)
    assert results == {(True,), (False,)}


def test_a_lock_is_waited_for_in_vain_or_not_where_both_are_at_the_same_time() -> None:
    results: set[bool] = set()

    def program() -> None:
        lock = threading.Lock()
        held = threading.Event()

        def hold() -> None:
            with lock:
                held.set()
                time.sleep(2)

        def acquire() -> None:
            held.wait()
            got = lock.acquire(timeout=2)
            results.add(got)
            if got:
                lock.release()

        together(hold, acquire)

    proved(program)
    assert results == {True, False}


def acquire_in_vain() -> None:
    lock = threading.Lock()
    with lock:
        together(lambda: fail_unless(lock.acquire(timeout=2)))


def wait_in_vain() -> None:
    event = threading.Event()
    together(lambda: fail_unless(event.wait(2)), lambda: event.wait(1))


def get_in_vain() -> None:
    items: queue.Queue[int] = queue.Queue()
    together(lambda: items.get(timeout=2), lambda: items.get(timeout=1))


def sleep_too_long() -> None:
    done: list[int] = []

    def sleep() -> None:
        done.append(1)
        time.sleep(3)
        fail_unless(len(done) < 2)

    together(sleep, sleep)


def fail_unless(good: bool) -> None:
    assert good


@pytest.mark.parametrize(
    "program",
    [acquire_in_vain, wait_in_vain, get_in_vain, sleep_too_long],
    ids=lambda p: p.__name__,
)
def test_a_failure_after_a_time_out_can_be_replayed(program: Callable[[], None]) -> None:
    with pytest.raises(ScheduleFailed) as failed:
        explore(program, EVERYTHING)
    with pytest.raises(ScheduleFailed) as again:
        replay(program, failed.value.schedule, steps=failed.value.steps)
    assert again.value.signature == failed.value.signature
