"""DPOR loses nothing: on random small programs it sees exactly the classes, outcomes and deadlocks
that trying every interleaving sees, and no class twice more often than it must."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Sequence

import pytest

from mmu.report import Report
from stress.engines.carrier import pinned
from stress.engines.controlled import ControlledRuntime
from stress.engines.program import Executor, ProgramTask, Strategy
from stress.engines.program import Program as AnyProgram
from stress.search.bounded import DepthFirst
from stress.search.dpor import Dpor
from stress.search.happens_before import class_of
from stress.search.random_walk import RandomWalk
from stress.selftest.litmus.base import LitmusProgram
from stress.selftest.litmus.registry import LITMUS

MOST = 500
"""A program with more interleavings than this is not compared."""


class Drawn:
    """A program that is drawn from a number, and breaks no rule: what its tasks have `seen` is its
    outcome."""

    has_start = False
    _seen: list[list[object]]

    def start(self) -> None: ...

    def closing(self) -> Sequence[ProgramTask]:
        return ()

    def reports(self) -> Sequence[Report]:
        return ()

    def errors(self) -> Sequence[str]:
        return ()

    def outcome(self) -> Hashable:
        return tuple(tuple(seen) for seen in self._seen)


class Chance(Drawn):
    """Two or three tasks with a few operations each on a few objects."""

    def __init__(self, runtime: ControlledRuntime, number: int) -> None:
        dice = random.Random(number)
        self._seen: list[list[object]] = []
        self._words = [runtime.counter(f"w{index}") for index in range(2)]
        self._mutexes = [runtime.lock(f"m{index}") for index in range(2)]
        self._rwlock = runtime.rwlock(dice.choice(["fair", "reader", "writer"]), "rw")
        self._runtime = runtime
        count = dice.choice([2, 2, 3])
        plans = [
            [dice.randrange(10) for _ in range(dice.randint(1, 3 if count == 2 else 2))]
            for _ in range(count)
        ]
        picks = [[dice.randrange(2) for _ in plan] for plan in plans]
        self.parts: Sequence[ProgramTask] = [
            ProgramTask(f"t{index}", self._body(plan, picked))
            for index, (plan, picked) in enumerate(zip(plans, picks, strict=True))
        ]

    def _body(self, plan: list[int], picked: list[int]) -> Callable[[], None]:
        seen: list[object] = []
        self._seen.append(seen)

        def body() -> None:
            for operation, which in zip(plan, picked, strict=True):
                self._do(operation, which, seen)

        return body

    def _do(self, operation: int, which: int, seen: list[object]) -> None:
        word, mutex = self._words[which], self._mutexes[which]
        match operation:
            case 0 | 1:
                seen.append(word.value)
            case 2:
                word.value = len(seen) + 5
            case 3:
                seen.append(word.fetch_add(1))
            case 4:
                seen.append(word.cmpxchg(0, 3))
            case 5:
                word.add(1)
            case 6:
                mutex.acquire()
                other = self._mutexes[1 - which]
                other.acquire()
                other.release()
                mutex.release()
            case 7:
                handle = self._rwlock.gen_wlock()
                handle.acquire()
                word.value = 7
                handle.release()
            case 8:
                handle = self._rwlock.gen_rlock()
                handle.acquire()
                seen.append(word.value)
                handle.release()
            case _:
                self._runtime.wait_until(
                    "something", lambda: word.value > 0 or self._words[1 - which].value == 0
                )
                seen.append("went on")


class Program:
    name = "chance"

    def build(self, runtime: ControlledRuntime, seed: int) -> Chance:
        return Chance(runtime, seed)


Everything = tuple[dict[int, Hashable], int]


def everything(
    strategy: Strategy, number: int, program: AnyProgram | None = None, most: int = 0
) -> Everything | None:
    """Every class with its outcome, deadlocks as their report; and how many executions that took.
    None: more than `most`."""
    executor = Executor(program or Program(), keep_extras=True)
    classes: dict[int, Hashable] = {}
    executions = 0
    while not strategy.exhausted:
        run = executor.execute(strategy, number)
        executions += 1
        if executions > (most or MOST):
            return None
        assert not run.errors
        if not run.cut:
            classes[class_of(run)] = run.outcome if run.completed else run.signature
    return classes, executions


@pytest.mark.parametrize("name", LITMUS)
def test_no_random_schedule_of_a_litmus_program_is_of_a_class_that_dpor_has_missed(
    name: str,
) -> None:
    """Nor has it, then, an outcome that DPOR has not seen: schedules of one class come to the
    same."""
    litmus = LITMUS[name]
    executor = Executor(LitmusProgram(litmus), limit=3000, keep_extras=True)
    explored: set[int] = set()
    search = Dpor()
    with pinned():
        while not search.exhausted:
            run = executor.execute(search)
            if not run.cut:
                explored.add(class_of(run))
        walk = RandomWalk(11)
        for _ in range(25):
            assert class_of(executor.execute(walk)) in explored


@pytest.mark.parametrize("block", range(3))
def test_dpor_sees_what_every_interleaving_shows(block: int) -> None:
    compared = 0
    with pinned():
        for number in range(block * 30, block * 30 + 30):
            reduced = everything(Dpor(), number)
            if reduced is None or reduced[1] > 60:
                continue
            whole = everything(DepthFirst(), number)
            if whole is None:
                continue
            compared += 1
            assert reduced[0] == whole[0], number
            assert reduced[1] <= whole[1], number
    assert compared >= 6
