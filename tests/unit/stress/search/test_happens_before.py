"""Classes of schedules: equal for what commutes, different for what does not, the same number in
every process."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from stress.engines.controlled import ControlledRuntime
from stress.engines.program import Executor, ProgramTask, Run
from stress.search.bounded import DepthFirst
from stress.search.happens_before import HappensBefore, class_of, conflict, join
from stress.search.random_walk import RandomWalk
from stress.search.turns import FollowTurns, Turn
from tests.command import python
from tests.unit.stress.search.programs import (
    DEADLOCK,
    LOST_UPDATE,
    PROTOCOL,
    SPAWNING,
    Body,
    Small,
    contended,
    independent,
    runs,
)

Make = Callable[[ControlledRuntime], list[Callable[[], object]]]


def program(make: Make) -> Small:
    def body(runtime: ControlledRuntime) -> Body:
        return Body([ProgramTask(f"t{number}", part) for number, part in enumerate(make(runtime))])  # type: ignore[arg-type]

    return Small("classes", body)


def classes(small: Small) -> set[int]:
    """The classes of all interleavings."""
    done = runs(small, DepthFirst(), 3_000)
    assert 1 < len(done) < 3_000
    return {class_of(run) for run in done}


def loads(runtime: ControlledRuntime) -> list[Callable[[], object]]:
    word = runtime.cell("word", 0)
    return [lambda: word.value, lambda: word.value]


def additions(runtime: ControlledRuntime) -> list[Callable[[], object]]:
    word = runtime.counter("word")
    return [lambda: word.add(1), lambda: word.add(2)]


def readers(runtime: ControlledRuntime) -> list[Callable[[], object]]:
    lock = runtime.rwlock("fair", "lock")

    def read() -> None:
        handle = lock.gen_rlock()
        handle.acquire()
        handle.release()

    return [read, read]


def load_and_store(runtime: ControlledRuntime) -> list[Callable[[], object]]:
    word = runtime.cell("word", 0)
    return [lambda: word.value, lambda: word.store(1)]


def two_loads_and_a_store(runtime: ControlledRuntime) -> list[Callable[[], object]]:
    word = runtime.cell("word", 0)
    return [lambda: word.value, lambda: word.value, lambda: word.store(1)]


def stores(runtime: ControlledRuntime) -> list[Callable[[], object]]:
    word = runtime.cell("word", 0)
    return [lambda: word.store(1), lambda: word.store(2)]


def fetches(runtime: ControlledRuntime) -> list[Callable[[], object]]:
    word = runtime.counter("word")
    return [lambda: word.fetch_add(1), lambda: word.fetch_add(1)]


def add_and_load(runtime: ControlledRuntime) -> list[Callable[[], object]]:
    word = runtime.counter("word")
    return [lambda: word.add(1), lambda: word.value]


def failed_exchanges(runtime: ControlledRuntime) -> list[Callable[[], object]]:
    word = runtime.cell("word", 0)
    return [lambda: word.cmpxchg(1, 2), lambda: word.cmpxchg(3, 4)]


def mutexes(runtime: ControlledRuntime) -> list[Callable[[], object]]:
    lock = runtime.lock("lock")

    def hold() -> None:
        with lock:
            pass

    return [hold, hold]


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (loads, 1),
        (additions, 1),
        (readers, 1),
        (failed_exchanges, 1),
        (load_and_store, 2),
        (add_and_load, 2),
        (stores, 2),
        (fetches, 2),
        (mutexes, 2),
        (two_loads_and_a_store, 4),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_classes_counted_by_hand(make: Make, count: int) -> None:
    assert len(classes(program(make))) == count


def test_what_touches_nothing_in_common_is_one_class() -> None:
    assert len(classes(independent(2, 2))) == 1
    assert len(classes(independent(1, 1, 1))) == 1


def test_orders_of_conflicting_operations_are_different_classes() -> None:
    done = runs(contended(2, 2), DepthFirst(), 3_000)
    assert len({class_of(run) for run in done}) == 6
    assert len({(class_of(run), run.outcome) for run in done}) == 6


@pytest.mark.parametrize("small", [LOST_UPDATE, PROTOCOL, SPAWNING], ids=lambda small: small.name)
def test_schedules_of_one_class_come_to_the_same(small: Small) -> None:
    outcomes: dict[int, set[tuple[object, ...]]] = {}
    for run in runs(small, RandomWalk(1), 300):
        outcomes.setdefault(class_of(run), set()).add((run.outcome, run.signature))
    assert len(outcomes) > 3
    assert all(len(each) == 1 for each in outcomes.values())


def test_the_number_is_kept_with_the_run() -> None:
    run = Executor(PROTOCOL).execute(RandomWalk(1))
    assert run.key is None
    assert class_of(run) == run.key == class_of(run)
    assert 0 <= run.key < 1 << 64


SCRIPT = """
from stress.search.happens_before import class_of
from stress.search.random_walk import RandomWalk
from tests.unit.stress.search.programs import DEADLOCK, PROTOCOL, SPAWNING, runs
programs = (PROTOCOL, SPAWNING, DEADLOCK)
print([class_of(run) for program in programs for run in runs(program, RandomWalk(5), 10)])
"""


@pytest.mark.parametrize("hash_seed", ["0", "4711"])
def test_another_process_gives_the_same_number(hash_seed: str) -> None:
    here = [
        class_of(run)
        for small in (PROTOCOL, SPAWNING, DEADLOCK)
        for run in runs(small, RandomWalk(5), 10)
    ]
    there = python("-c", SCRIPT, PYTHONHASHSEED=hash_seed)
    assert there.out.strip() == str(here), there.err


# Happens-before.


def ordered(run: Run, *, weak: bool = False) -> HappensBefore:
    order = HappensBefore(run.trace, run.extras, len(run.names), weak=weak)
    for position in range(len(run.trace)):
        order.advance(position, order.touched(position))
    return order


def steps_of(run: Run, task: int) -> list[int]:
    return [position for position, event in enumerate(run.trace) if event[0] == task]


def test_the_steps_of_one_task_are_in_order_and_unrelated_ones_are_not() -> None:
    run = Executor(independent(2, 2)).execute(RandomWalk(1))
    order = ordered(run)
    first, second = steps_of(run, 1), steps_of(run, 2)
    assert all(order.before(one, other) for one, other in pairwise(first))
    assert not any(
        order.before(one, other) or order.before(other, one) for one in first for other in second
    )


def test_a_store_is_before_a_load_that_comes_after_it() -> None:
    run = Executor(program(load_and_store)).execute(
        FollowTurns([Turn("t1", None), Turn("t0", None)])
    )
    order = ordered(run)
    load, store = steps_of(run, 1)[-1], steps_of(run, 2)[-1]
    assert order.before(store, load)
    assert not order.before(load, store)
    assert ordered(run, weak=True).before(store, load)


def test_in_the_weak_order_nobody_learns_of_a_load() -> None:
    run = Executor(program(load_and_store)).execute(
        FollowTurns([Turn("t0", None), Turn("t1", None)])
    )
    load, store = steps_of(run, 1)[-1], steps_of(run, 2)[-1]
    assert ordered(run).before(load, store)
    assert not ordered(run, weak=True).before(load, store)


def test_what_conflicts_is_as_the_groups_say() -> None:
    run = Executor(program(two_loads_and_a_store)).execute(FollowTurns([]))
    order = ordered(run)
    one, two, store = (order.touched(steps_of(run, task)[1]) for task in (1, 2, 3))
    assert not conflict(one, two)
    assert conflict(one, store)
    assert conflict(store, store)
    assert not conflict([], store)


def test_clocks_are_joined() -> None:
    assert join([1, 5, 0], [2, 3, 0]) == [2, 5, 0]
