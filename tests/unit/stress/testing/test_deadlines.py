"""Waits that end by time under `explore`: those that end at about the same time end in any
order."""

from __future__ import annotations

import threading
import time

from stress.testing import explore
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
