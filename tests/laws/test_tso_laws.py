"""With store buffers, exploration shows exactly what x86-TSO allows: on random small programs the
outcomes of an abstract machine that shares no code with the engine, and the classes of trying every
schedule."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import pytest

from mmu.report import Report
from stress.engines.carrier import pinned
from stress.engines.carrier_choice import MEMORIES, TSO
from stress.engines.controlled import ControlledRuntime
from stress.engines.program import Executor, ProgramTask, Strategy
from stress.search.bounded import DepthFirst, PreemptionBounded
from stress.search.dpor import Dpor
from stress.search.happens_before import class_of
from stress.search.portfolio import default_strategies
from stress.search.state_cache import StateCache
from stress.selftest.litmus.base import LitmusProgram
from stress.selftest.litmus.registry import LITMUS
from tests.laws.test_dpor_laws import Chance, everything
from tests.machine import Op, Outcome, outcomes

WORDS, LOCKS = ("x", "y", "z"), ("l", "m")


class Straight:
    """A program of the abstract machine, on the engine."""

    has_start = False

    def __init__(self, runtime: ControlledRuntime, program: Sequence[Sequence[Op]]) -> None:
        used = sorted({op[1] for task in program for op in task if len(op) > 1})
        self._runtime = runtime
        self._words = {word: runtime.counter(word) for word in used if word in WORDS}
        self._locks = {lock: runtime.lock(lock) for lock in used if lock in LOCKS}
        self._used = used
        self._seen: list[list[int]] = [[] for _ in program]
        self.parts: Sequence[ProgramTask] = [
            ProgramTask(f"t{number}", self._body(task, self._seen[number]))
            for number, task in enumerate(program)
        ]

    def _body(self, task: Sequence[Op], seen: list[int]) -> Callable[[], None]:
        def body() -> None:
            for op in task:
                self._do(op, seen)

        return body

    def _do(self, op: Op, seen: list[int]) -> None:
        match op:
            case ("store", word, value):
                self._words[word].value = value
            case ("load", word):
                seen.append(self._words[word].value)
            case ("xchg", word, value):
                seen.append(self._words[word].xchg(value))
            case ("add", word):
                self._words[word].add(1)
            case ("mb",):
                self._runtime.mb("test")
            case ("lock", name):
                self._locks[name].acquire()
            case ("unlock", name):
                self._locks[name].release()

    def start(self) -> None: ...

    def closing(self) -> Sequence[ProgramTask]:
        return ()

    def reports(self) -> Sequence[Report]:
        return ()

    def errors(self) -> Sequence[str]:
        return ()

    def outcome(self) -> Outcome:
        memory = {word: cell.peek() for word, cell in self._words.items()}
        return (
            tuple(map(tuple, self._seen)),
            tuple((word, memory.get(word, 0)) for word in self._used),
        )


class StraightProgram:
    name = "straight"

    def __init__(self, program: Sequence[Sequence[Op]]) -> None:
        self._program = program

    def build(self, runtime: ControlledRuntime, seed: int) -> Straight:
        return Straight(runtime, self._program)


def drawn(number: int) -> list[list[Op]]:
    """A program of two or three tasks; what is locked is unlocked, not always at once."""
    dice = random.Random(number)
    tasks = dice.choice([2, 2, 3])
    return [_task(dice, 5 if tasks == 2 else 3) for _ in range(tasks)]


def _task(dice: random.Random, most: int) -> list[Op]:
    ops: list[Op] = []
    held = ""
    for step in range(dice.randint(2, most)):
        word = dice.choice(WORDS[:2] if most == 5 else WORDS)
        kind = dice.randrange(12)
        if kind < 5:
            ops.append(("store", word, step + 1))
        elif kind < 9:
            ops.append(("load", word))
        elif kind == 9:
            ops.append(dice.choice([("xchg", word, step + 7), ("add", word)]))
        elif kind == 10:
            ops.append(("mb",))
        elif held:
            ops.append(("unlock", held))
            held = ""
        else:
            held = dice.choice(LOCKS)
            ops.append(("lock", held))
    return [*ops, ("unlock", held)] if held else ops


def explored(
    program: Sequence[Sequence[Op]], memory: str, strategy: Strategy, most: int
) -> Counter[Hashable] | None:
    """The outcomes that a strategy sees, and in how many schedules; None if it needs more than
    `most`."""
    executor = Executor(StraightProgram(program), keep_extras=True, memory=memory)
    found: Counter[Hashable] = Counter()
    for _ in range(most):
        run = executor.execute(strategy)
        assert not run.errors
        if not run.cut:
            assert run.completed
            found[run.outcome] += 1
        if strategy.exhausted:
            return found
    return None


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("block", range(4))
def test_dpor_sees_the_outcomes_of_the_abstract_machine(block: int, memory: str) -> None:
    compared = more = 0
    with pinned():
        for number in range(block * 40, block * 40 + 40):
            program = drawn(number)
            found = explored(program, memory, Dpor(), 400)
            if found is not None:
                compared += 1
                assert set(found) == outcomes(program, buffered=memory == TSO), program
                more += set(found) != outcomes(program, buffered=False)
    assert compared >= 30
    assert bool(more) is (memory == TSO)


class Buffered:
    """The random programs of the laws of DPOR, with store buffers."""

    name = "chance"
    memory = TSO

    def build(self, runtime: ControlledRuntime, seed: int) -> Chance:
        return Chance(runtime, seed)


@pytest.mark.parametrize("block", range(2))
def test_dpor_sees_every_class_that_every_schedule_shows_and_each_once(block: int) -> None:
    compared = 0
    executions = schedules = 0
    with pinned():
        for number in range(block * 20, block * 20 + 20):
            reduced = everything(Dpor(), number, Buffered(), 60)
            whole = everything(DepthFirst(), number, Buffered(), 700) if reduced else None
            if reduced is None or whole is None:
                continue
            compared += 1
            assert reduced[0] == whole[0], number
            assert len(reduced[0]) <= reduced[1] <= len(whole[0]) + 2, number
            executions += reduced[1]
            schedules += whole[1]
    assert compared >= 5
    assert schedules > 20 * executions


def _sb(*barriers: Op) -> list[list[Op]]:
    return [
        [("store", "x", 1), *barriers, ("load", "y")],
        [("store", "y", 1), *barriers, ("load", "x")],
    ]


@pytest.mark.parametrize(
    ("program", "memory", "executions"),
    [
        (_sb(), "sc", 3),
        (_sb(), "tso", 4),
        (_sb(("mb",)), "tso", 3),
        # the task whose store is drained first loads before that, between the two or after both;
        # the other one before or after its own
        ([[("store", "x", 1), ("load", "x")], [("store", "x", 2), ("load", "x")]], "tso", 12),
    ],
    ids=["sb-sc", "sb-tso", "sb-mb-tso", "forwarded"],
)
def test_how_many_executions_dpor_needs(
    program: list[list[Op]], memory: str, executions: int
) -> None:
    found = explored(program, memory, Dpor(), 100)
    assert found is not None
    assert found.total() == executions


def test_state_caching_loses_no_outcome() -> None:
    found = explored(_sb(), TSO, DepthFirst(StateCache()), 2000)
    assert found is not None
    assert set(found) == outcomes(_sb(), buffered=True)


@pytest.mark.parametrize(
    ("bound", "seen"),
    [
        (0, {(0, 0), (0, 1), (1, 0)}),
        (1, {(0, 0), (0, 1), (1, 0)}),
        (2, {(0, 0), (0, 1), (1, 0), (1, 1)}),
    ],
)
def test_a_drain_that_nothing_waits_for_counts_as_a_preemption(
    bound: int, seen: set[tuple[int, int]]
) -> None:
    found = explored(_sb(), TSO, PreemptionBounded(bound), 2000)
    assert found is not None
    assert {(left[0], right[0]) for (left, right), _ in found} == seen  # type: ignore[misc]


@pytest.mark.parametrize("strategy", default_strategies(5), ids=lambda each: each.name)
def test_every_random_strategy_meets_both_loads_before_both_stores(strategy: Strategy) -> None:
    found: set[Any] = set()
    executor = Executor(StraightProgram(_sb()), keep_extras=True, memory=TSO)
    for _ in range(200):
        found.add(executor.execute(strategy).outcome[0])  # type: ignore[index]
    assert ((0,), (0,)) in found


@pytest.mark.parametrize("name", ["store-buffering", "message-passing", "srcu-synchronize"])
def test_no_random_schedule_is_of_a_class_that_dpor_has_missed(name: str) -> None:
    executor = Executor(LitmusProgram(LITMUS[name]), limit=3000, keep_extras=True, memory=TSO)
    search, seen = Dpor(), set()
    with pinned():
        while not search.exhausted:
            run = executor.execute(search)
            if not run.cut:
                seen.add(class_of(run))
        for strategy in default_strategies(3):
            for _ in range(15):
                assert class_of(executor.execute(strategy)) in seen
