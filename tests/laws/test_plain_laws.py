"""DPOR loses nothing of the standard library's primitives: on small programs drawn at random it
sees exactly the classes of schedules, deadlocks and outcomes that trying every interleaving
sees."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from stress.search.bounded import DepthFirst
from stress.search.dpor import Dpor
from stress.search.exploration import Exploration, ExplorationTally, SearchBudget
from stress.testing.program import FunctionProgram

MOST = 300
"""A program with more interleavings is left out."""


class Drawn:
    """Two or three threads that do a few operations each on few objects."""

    def __init__(self, number: int) -> None:
        dice = random.Random(number)
        self.outcomes: set[tuple[Any, ...]] = set()
        self.kinds = dice.sample(["lock", "semaphore", "event", "condition", "queue", "lifo"], 2)
        self._plans = [
            [dice.randrange(1000) for _ in range(dice.randint(1, 3))]
            for _ in range(dice.choice([2, 2, 3]))
        ]
        self._bound = dice.choice([0, 1])

    def program(self) -> Callable[[], None] | None:
        """Called once a schedule."""
        seen: list[list[Any]] = [[] for _ in self._plans]
        things = [self._make(kind) for kind in self.kinds]

        def run(index: int) -> None:
            for number in self._plans[index]:
                operations = things[number % len(things)]
                seen[index].append(operations[number // 7 % len(operations)]())

        threads = [threading.Thread(target=run, args=(index,)) for index in range(len(seen))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.outcomes.add(tuple(map(tuple, seen)))
        return None

    def _make(self, kind: str) -> list[Callable[[], Any]]:
        made: list[Callable[[], Any]] = getattr(self, f"_{kind}")()
        return made

    def _lock(self) -> list[Callable[[], Any]]:
        lock, entered = threading.Lock(), [0]

        def enter() -> int:
            with lock:
                entered[0] += 1
                return entered[0]

        return [enter, enter, lambda: lock.acquire(timeout=0.1), lambda: lock.acquire(False)]

    def _semaphore(self) -> list[Callable[[], Any]]:
        semaphore = threading.Semaphore(1)
        return [
            semaphore.acquire,
            semaphore.release,
            semaphore.release,
            lambda: semaphore.acquire(False),
            lambda: semaphore.acquire(timeout=2),
        ]

    def _event(self) -> list[Callable[[], Any]]:
        event = threading.Event()
        return [
            event.set,
            event.set,
            event.clear,
            event.wait,
            event.is_set,
            lambda: event.wait(0.1),
            lambda: event.wait(3),
        ]

    def _condition(self) -> list[Callable[[], Any]]:
        condition = threading.Condition()

        def do(what: Callable[[], Any]) -> Callable[[], Any]:
            def within() -> Any:
                with condition:
                    return what()

            return within

        return [
            do(condition.wait),
            do(condition.notify),
            do(condition.notify_all),
            do(lambda: condition.wait(0.1)),
            do(lambda: condition.wait(2)),
        ]

    def _queue(self) -> list[Callable[[], Any]]:
        items: queue.Queue[int] = queue.Queue(self._bound)
        return self._ends(items)

    def _lifo(self) -> list[Callable[[], Any]]:
        return self._ends(queue.LifoQueue())

    def _ends(self, items: queue.Queue[int]) -> list[Callable[[], Any]]:
        count = iter(range(100))

        def get(timeout: float | None) -> int:
            try:
                return items.get(timeout=timeout)
            except queue.Empty:
                return -1

        return [
            lambda: items.put(next(count)),
            lambda: items.put(next(count)),
            items.get,
            lambda: get(0.1),
            lambda: get(2),
            items.qsize,
            lambda: time.sleep(0.1),
        ]


def explored(drawn: Drawn, strategy: Dpor | DepthFirst) -> ExplorationTally | None:
    """Everything about a program; None if that is too much."""
    drawn.outcomes.clear()
    program = FunctionProgram(drawn.program)
    program.body_is_task = True
    exploration = Exploration(program, strategy, limit=2_000)
    exploration._executor.keep_extras = True  # without them, classes of waits are coarser
    with program.under_control():
        tally = exploration.run(SearchBudget(MOST, stop_at_failure=False))
    return tally if tally.exhausted else None


@pytest.mark.parametrize("first", range(0, 60, 10))
def test_dpor_sees_what_every_interleaving_shows(first: int) -> None:
    compared = 0
    for number in range(first, first + 10):
        drawn = Drawn(number)
        every = explored(drawn, DepthFirst())
        if every is None:
            continue
        outcomes = set(drawn.outcomes)
        reduced = explored(drawn, Dpor())
        assert reduced is not None
        assert drawn.outcomes == outcomes, number
        assert set(reduced.failures) == set(every.failures), number
        assert set(reduced.seen) == set(every.seen), number
        assert reduced.schedules <= every.schedules
        compared += 1
    assert compared
