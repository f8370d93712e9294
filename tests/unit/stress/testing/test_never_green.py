"""Nothing looks explored, proved or hung that is not."""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
import time
from typing import Any

import pytest

from mmu.sync import Lock
from stress.engines.carrier import POOL
from stress.testing import (
    Inconclusive,
    NothingExplored,
    ScheduleFailed,
    Settings,
    TaskBlocked,
    Unsteady,
    explore,
)
from tests.unit.stress.testing.programs import EVERYTHING, failure_of, together


class TestNothingExplored:
    def test_tasks_that_share_nothing(self) -> None:
        def program(sync: Any) -> None:
            for name in "ab":
                word = sync.cell(name, 0)
                sync.spawn(setattr, word, "value", 1)

        for settings in (EVERYTHING, Settings(schedules=10)):
            with pytest.raises(NothingExplored, match="no two tasks"):
                explore(program, settings)

    def test_tasks_that_only_read(self) -> None:
        def program(sync: Any) -> None:
            word = sync.cell("word", 0)
            sync.spawn(lambda: word.value)
            sync.spawn(lambda: word.value)

        with pytest.raises(NothingExplored, match="no two tasks"):
            explore(program, EVERYTHING)

    def test_threads_that_only_end(self) -> None:
        with pytest.raises(NothingExplored, match="no two tasks"):
            explore(lambda: together(int, int), EVERYTHING)


class TestUnsteady:
    @pytest.mark.parametrize("strategy", ["dpor", "dfs", "random", "portfolio"])
    def test_steps_that_depend_on_chance(self, strategy: str) -> None:
        dice = random.Random(5)

        def program(sync: Any) -> None:
            words = [sync.cell(name, 0) for name in "abc"]

            def write() -> None:
                for _ in range(3):
                    dice.choice(words).value = 1

            sync.spawn(write)
            sync.spawn(write)

        with pytest.raises(Unsteady, match=r"step \d+.*(store|over)"):
            explore(program, Settings(strategy=strategy, schedules=200))

    def test_what_an_earlier_schedule_has_left_behind(self) -> None:
        numbers = itertools.count()  # whose number nobody can see or put back

        def program(sync: Any) -> None:
            word = sync.cell("word", 0)

            def write() -> None:
                if next(numbers) > 14:
                    word.value = 1
                word.value = 0

            sync.spawn(write)
            sync.spawn(write)

        with pytest.raises(Unsteady, match="left behind"):
            explore(program, EVERYTHING)

    def test_a_task_that_is_not_always_there(self) -> None:
        number = [0]

        def program(sync: Any) -> None:
            word = sync.cell("word", 0)
            number[0] += 1
            for _ in range(2 + number[0] % 2):
                sync.spawn(setattr, word, "value", 1)

        with pytest.raises(Unsteady):
            explore(program, EVERYTHING)


class TestLimits:
    def test_schedules_that_are_all_cut_off_prove_nothing(self) -> None:
        def program(sync: Any) -> None:
            word = sync.counter("word")

            def write() -> None:
                for _ in range(50):
                    word.add(1)

            sync.spawn(write)
            sync.spawn(write)

        for settings in (Settings(limit=20, exhaustive=True), Settings(limit=20, schedules=5)):
            with pytest.raises(Inconclusive, match="cut off because they were too long"):
                explore(program, settings)

    def test_a_checked_lock_does_not_spin(self) -> None:
        def program(sync: Any) -> Any:
            lock, count = Lock("l", sync=sync), sync.counter("n")

            def add() -> None:
                with lock:
                    count.value += 1

            sync.spawn(add)
            sync.spawn(add)
            return lambda: count.value == 2

        explored = explore(program, EVERYTHING)
        assert explored.exhausted
        assert explored.steps < 20 * explored.schedules


class Hidden:
    """Holds a real lock where no search finds it."""

    def __init__(self) -> None:
        lock = threading.Lock()
        self.acquire = (lock.acquire,)
        lock.acquire()


HIDDEN = Hidden()


class TestBlocked:
    def test_a_task_that_blocks_elsewhere_is_named_with_its_line(self) -> None:
        def program(sync: Any) -> None:
            word = sync.counter("word")

            def stuck() -> None:
                word.add(1)
                HIDDEN.acquire[0]()

            sync.spawn(stuck)
            sync.spawn(word.add, 1)

        began = time.monotonic()
        with pytest.raises(TaskBlocked, match=r"stuck1 blocks in .*HIDDEN\.acquire\[0\]\(\)"):
            explore(program, EVERYTHING)
        assert time.monotonic() - began > 0.5
        failure_of(lost_update)

    def test_a_task_that_computes_is_not_blocked(self) -> None:
        calls = itertools.count()

        def program(sync: Any) -> None:
            word = sync.counter("word")

            def compute() -> None:
                end = time.thread_time() + (1.5 if next(calls) == 5 else 0)
                while time.thread_time() < end:
                    pass
                word.add(1)

            sync.spawn(compute)
            sync.spawn(word.add, 1)

        explore(program, Settings(schedules=1))
        assert next(calls) > 5

    @pytest.mark.parametrize("how", ["computes", "blocks"])
    def test_ctrl_c_works_at_once(self, how: str) -> None:
        """Also while a task runs that comes to no step."""
        told, tell = os.pipe()
        nothing, _ = os.pipe()
        stop: list[int] = []

        def interrupt() -> None:
            os.read(told, 1)
            os.kill(os.getpid(), signal.SIGINT)

        def program(sync: Any) -> None:
            word = sync.counter("word")

            def busy() -> None:
                os.write(tell, b"x")
                while how == "computes" and not stop:
                    pass
                if how == "blocks":
                    os.read(nothing, 1)

            sync.spawn(busy)
            sync.spawn(word.add, 1)

        killer = threading.Thread(target=interrupt)
        killer.start()
        with pytest.raises(KeyboardInterrupt):
            explore(program, EVERYTHING)
        stop.append(1)
        killer.join()
        failure_of(lost_update)


def lost_update(sync: Any) -> Any:
    """A program that is wrong."""
    count = sync.counter("count")

    def add() -> None:
        count.value = count.value + 1

    sync.spawn(add)
    sync.spawn(add)
    return lambda: count.value == 2


def test_everything_is_put_back_whatever_happens() -> None:
    before = (threading.Lock, threading.Thread.start, time.sleep, threading.Event.wait)

    def program(sync: Any) -> None:
        raise KeyboardInterrupt

    for wrong, error in ((program, KeyboardInterrupt), (lost_update, ScheduleFailed)):
        with pytest.raises(error):
            explore(wrong, EVERYTHING)
        assert (threading.Lock, threading.Thread.start, time.sleep, threading.Event.wait) == before
    assert not POOL.busy.locked()
