"""DPOR loses nothing of waits: on random small programs that are full of them it sees exactly the
classes, outcomes and deadlocks that trying every interleaving sees. What opens a wait is no race
with it, unless something else can open it as well."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from mmu.runtime import Counter as Word
from stress.engines.carrier import pinned
from stress.engines.controlled import ControlledRuntime
from stress.engines.program import Executor, ProgramTask
from stress.search.bounded import DepthFirst
from stress.search.dpor import Dpor
from stress.search.happens_before import class_of
from stress.search.random_walk import RandomWalk
from tests.laws.test_dpor_laws import Drawn, everything
from tests.unit.stress.search.programs import Body, Small

OPERATIONS = (
    "load",
    "store",
    "store",
    "add",
    "xchg",
    "branch",
    "flag",
    "wait for all",
    "wait",
    "wait",
)
PREDICATES: tuple[Callable[[Word, Word], bool], ...] = (
    lambda a, _: a.value > 0,
    lambda a, b: a.value > 0 or b.value > 0,
    lambda a, b: b.value > 0 or a.value > 0,
    lambda a, b: a.value > 0 and b.value > 0,
    lambda a, b: a.value == b.value,
    lambda a, b: a.value != b.value,
    lambda a, b: a.value == 1 or b.value == 2,
    lambda a, b: a.value + b.value >= 2,
)
"""What is waited for, of two words: some need both, some only one, and look at the other only if
they must."""


class Waits(Drawn):
    """Two or three tasks that write to two or three words, wait for each other's writes, and set
    their flags."""

    def __init__(self, runtime: ControlledRuntime, number: int) -> None:
        self._dice = dice = random.Random(number)
        self._runtime = runtime
        self._words = [runtime.counter(f"w{index}") for index in range(dice.choice([2, 2, 3]))]
        count = dice.choice([2, 3, 3])
        self._flags = [runtime.cell(f"f{index}", False) for index in range(count)]
        self._seen: list[list[object]] = [[] for _ in range(count)]
        self.parts: Sequence[ProgramTask] = [
            ProgramTask(f"t{index}", self._body(index, self._plan(index, count)))
            for index in range(count)
        ]

    def _plan(self, index: int, count: int) -> list[Callable[[], object]]:
        """What task `index` does, drawn; the first of all often begins with a wait, which then has
        looked when others write."""
        names = [
            self._dice.choice(OPERATIONS)
            for _ in range(self._dice.randint(1, 4 if count == 2 else 3))
        ]
        if not index and self._dice.random() < 0.5:
            names[0] = "wait"
        if "flag" in names:  # is set once
            names = [
                name for at, name in enumerate(names) if name != "flag" or at == names.index("flag")
            ]
        return [self._operation(name, index) for name in names]

    def _body(self, index: int, plan: list[Callable[[], object]]) -> Callable[[], None]:
        def body() -> None:
            for operation in plan:
                self._seen[index].append(operation())

        return body

    def _operation(self, name: str, index: int) -> Callable[[], object]:
        word, other = self._dice.sample(self._words, 2)
        value, runtime = self._dice.randrange(3), self._runtime
        match name:
            case "load":
                return lambda: word.value
            case "store":
                return lambda: word.store(value)
            case "add":
                return lambda: word.add(1)
            case "xchg":
                return lambda: word.xchg(value)
            case "branch":
                return lambda: other.store(1) if word.value else None
            case "flag":
                return lambda: self._flags[index].store(True)
            case "wait for all":
                others = [flag for at, flag in enumerate(self._flags) if at != index]
                return lambda: runtime.wait_for_all("the others", *others)
            case _:
                holds = self._dice.choice(PREDICATES)
                return lambda: runtime.wait_until("something", lambda: holds(word, other))


class Program:
    name = "waits"

    def build(self, runtime: ControlledRuntime, seed: int) -> Waits:
        return Waits(runtime, seed)


def either(runtime: ControlledRuntime) -> Body:
    """What opens the wait at first is one of two: the other, which comes after it, could have
    opened it as well."""
    one, other = runtime.counter("one"), runtime.counter("other")
    parts = [
        ProgramTask(
            "waits", lambda: runtime.wait_until("either", lambda: one.value > 0 or other.value > 0)
        ),
        ProgramTask("one", lambda: one.store(1)),
        ProgramTask("other", lambda: other.store(1)),
    ]
    return Body(parts)


def either_at_last(runtime: ControlledRuntime) -> Body:
    """The other is written only in some of the executions that begin alike, up to the wait and
    beyond."""
    body, may = either(runtime), runtime.counter("may")
    write = body.parts[2].body
    body.parts = [
        *body.parts[:2],
        ProgramTask("other", lambda: write() if may.value else None),
        ProgramTask("allows", lambda: may.store(1)),
    ]
    return body


def all_of_them(runtime: ControlledRuntime) -> Body:
    """However late the wait comes, what it waits for comes before it."""
    flags = [runtime.cell(f"flag{index}", False) for index in range(3)]
    setters = [
        ProgramTask(f"sets{index}", lambda flag=flag: flag.store(True))
        for index, flag in enumerate(flags)
    ]  # type: ignore[misc]
    return Body([*setters, ProgramTask("waits", lambda: runtime.wait_for_all("all", *flags))])


@pytest.mark.parametrize(
    ("make", "executions"), [(either, 2), (either_at_last, 5), (all_of_them, 1)]
)
def test_what_can_open_a_wait_is_found_wherever_it_comes(
    make: Callable[[ControlledRuntime], Body], executions: int
) -> None:
    with pinned():
        reduced = everything(Dpor(), 0, Small("waits", make))
        whole = everything(DepthFirst(), 0, Small("waits", make), most=100_000)
    assert reduced is not None
    assert whole is not None
    assert reduced == (whole[0], executions)
    assert executions - len(whole[0]) <= 2  # hardly any in vain


def check(number: int) -> bool:
    """Whether the program is small enough to compare; and if so, that both see the same."""
    reduced = everything(Dpor(), number, Program())
    if reduced is None or reduced[1] > 60:
        return False
    whole = everything(DepthFirst(), number, Program())
    if whole is None:
        return False
    assert reduced[0] == whole[0], number
    return True


@pytest.mark.parametrize("number", [200304, 200599])
def test_dpor_sees_every_class_of_programs_of_which_it_once_missed_one(number: int) -> None:
    """A wait that is open only between two additions; a write that the wait comes after only where
    it has not seen another."""
    with pinned():
        assert check(number)


@pytest.mark.parametrize("block", range(3))
def test_dpor_sees_every_class_of_programs_that_wait(block: int) -> None:
    with pinned():
        compared = [check(number) for number in range(block * 40, block * 40 + 40)]
    assert sum(compared) >= 20


def test_no_random_schedule_of_a_larger_program_is_of_a_class_that_dpor_has_missed() -> None:
    walk = RandomWalk(5)
    executor = Executor(Program(), keep_extras=True)
    with pinned():
        for number in range(1000, 1020):
            reduced = everything(Dpor(), number, Program())
            if reduced is not None:
                runs = [executor.execute(walk, number) for _ in range(20)]
                assert {class_of(run) for run in runs} <= reduced[0].keys(), number
