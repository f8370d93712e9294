"""Races that did no harm: what is reported of one schedule, and that nothing is once somebody has
waited."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from stress.engines.controlled import ControlledRuntime
from stress.engines.program import Executor, ProgramTask
from stress.search.races import races_of
from stress.search.turns import FollowTurns, Turn
from tests.unit.stress.search.programs import LOST_UPDATE, Body, Small

Make = Callable[[ControlledRuntime], dict[str, Callable[[], object]]]


def found(make: Make, *turns: tuple[str, int | None]) -> list[tuple[str, str, str]]:
    """Rule, code and subject of everything in the schedule with these turns; it begins with every
    task's start."""

    def body(runtime: ControlledRuntime) -> Body:
        return Body([ProgramTask(name, part) for name, part in make(runtime).items()])  # type: ignore[arg-type]

    run = Executor(Small("races", body)).execute(FollowTurns([Turn(*turn) for turn in turns]))
    assert run.completed
    assert not run.errors
    return [(report.rule, report.code, report.subject) for report in races_of(run)]


UNSEEN = ("O7", "unseen-write-overwritten", "SPTE")
ONE_TWO = (("one", None), ("two", None))


# Stores to SPTEs.


def sptes(
    second: Callable[[ControlledRuntime, object], object], name: str = "SPTE", first: str = "store"
) -> Make:
    """Task one writes the word 1 of a table; what task two does is given."""

    def make(runtime: ControlledRuntime) -> dict[str, Callable[[], object]]:
        table = runtime.table(4, name)
        return {"one": lambda: getattr(table, first)(1, 5), "two": lambda: second(runtime, table)}

    return make


@pytest.mark.parametrize("first", ["store", "xchg"])
def test_a_store_over_a_write_that_was_not_seen(first: str) -> None:
    assert found(sptes(lambda _, table: table.store(1, 7), first=first), *ONE_TWO) == [UNSEEN]


@pytest.mark.parametrize(
    "second",
    [
        lambda _, table: (table[1], table.store(1, 7)),
        lambda _, table: table.xchg(1, 7),
        lambda _, table: (table.cmpxchg(1, 0, 7), table.store(1, 7)),
        lambda _, table: table.cmpxchg(1, 5, 7),
        lambda _, table: table.fetch_and(1, 4),
        lambda _, table: table.store(2, 7),
        lambda _, table: table[1],
    ],
    ids=[
        "read before",
        "xchg",
        "cmpxchg lost before",
        "cmpxchg",
        "fetch_and",
        "another entry",
        "a load",
    ],
)
def test_what_loses_nothing(second: Callable[[ControlledRuntime, object], object]) -> None:
    assert found(sptes(second), *ONE_TWO) == []


def test_only_tables_of_sptes_are_looked_at() -> None:
    assert found(sptes(lambda _, table: table.store(1, 7), name="other words"), *ONE_TWO) == []


def test_own_writes_are_seen() -> None:
    def make(runtime: ControlledRuntime) -> dict[str, Callable[[], object]]:
        table = runtime.table(2, "SPTE")
        return {"one": lambda: (table.store(1, 5), table.store(1, 6)), "two": lambda: table[1]}

    assert found(make, *ONE_TWO) == []


def test_a_write_that_came_between_load_and_store_is_lost() -> None:
    make = sptes(lambda _, table: (table[1], table.store(1, 7)))
    assert found(make, ("two", 2), *ONE_TWO) == [UNSEEN]
    assert found(make, ("two", None), ("one", None)) == [UNSEEN], "one, too, stores without looking"


def test_a_lock_lets_see() -> None:
    def make(runtime: ControlledRuntime) -> dict[str, Callable[[], object]]:
        table, lock = runtime.table(2, "SPTE"), runtime.lock("mmu_lock")

        def write() -> None:
            with lock:
                table.store(1, 5)

        return {"one": write, "two": write}

    assert found(make, *ONE_TWO) == []


def test_a_rwlock_for_read_does_not() -> None:
    def make(runtime: ControlledRuntime) -> dict[str, Callable[[], object]]:
        table, lock = runtime.table(2, "SPTE"), runtime.rwlock("fair", "mmu_lock")

        def write() -> None:
            handle = lock.gen_rlock()
            handle.acquire()
            table.store(1, 5)
            handle.release()

        return {"one": write, "two": write}

    assert found(make, *ONE_TWO) == [UNSEEN]


def test_a_finding_is_reported_once() -> None:
    def make(runtime: ControlledRuntime) -> dict[str, Callable[[], object]]:
        table = runtime.table(2, "SPTE")

        def write() -> None:
            table.store(0, 5)
            table.store(1, 5)

        return {"one": write, "two": write}

    assert found(make, *ONE_TWO) == [UNSEEN]


# Tables that are freed.

EARLY = ("O3", "freed-without-waiting", "SPTE")


def freeing(
    wait: Callable[[ControlledRuntime, dict[str, object]], object], use: Callable[[object], object]
) -> Make:
    """The reader uses a table and says that it is done; what the other waits for before it frees
    the table is given."""

    def make(runtime: ControlledRuntime) -> dict[str, Callable[[], object]]:
        table, done, lock = (
            runtime.table(4, "SPTE"),
            runtime.cell("done", False),
            runtime.lock("lock"),
        )
        shared = {"done": done, "lock": lock}

        def read() -> None:
            with lock:
                use(table)
            done.store(True)

        def free() -> None:
            wait(runtime, shared)
            table.end()

        return {"reader": read, "freer": free}

    return make


READ_FREE = (("reader", None), ("freer", None))


@pytest.mark.parametrize(
    "use", [lambda table: table[2], lambda table: table.xchg(0, 1), lambda table: table.store(3, 1)]
)
def test_a_table_that_is_freed_without_waiting(use: Callable[[object], object]) -> None:
    assert found(freeing(lambda *_: None, use), *READ_FREE) == [EARLY]


@pytest.mark.parametrize(
    "use", [lambda table: table[2], lambda table: table.xchg(2, 1), lambda table: table.store(2, 1)]
)
def test_a_store_lets_nobody_know_what_it_overwrites(use: Callable[[object], object]) -> None:
    """The flag of the reader is not looked at, but written to, and so is a word of something else
    that the reader has used."""
    assert found(freeing(lambda _, shared: shared["done"].store(False), use), *READ_FREE) == [EARLY]


@pytest.mark.parametrize(("second", "rules"), [("store", [UNSEEN, EARLY]), ("xchg", [])])
def test_a_store_to_the_word_itself_is_no_look_at_it(
    second: str, rules: list[tuple[str, str, str]]
) -> None:
    def make(runtime: ControlledRuntime) -> dict[str, Callable[[], object]]:
        table = runtime.table(4, "SPTE")
        return {
            "reader": lambda: table.store(3, 1),
            "freer": lambda: (getattr(table, second)(3, 0), table.end()),
        }

    assert found(make, *READ_FREE) == rules


@pytest.mark.parametrize(
    "wait",
    [
        lambda runtime, shared: runtime.wait_until("the reader", lambda: shared["done"].value),
        lambda runtime, shared: shared["done"].value,
        lambda runtime, shared: shared["lock"].__enter__(),
        pytest.param(
            lambda runtime, shared: runtime.join(runtime.tasks()[0]),
        ),
    ],
    ids=["wait", "flag", "lock", "join"],
)
def test_whoever_has_waited_may_free(
    wait: Callable[[ControlledRuntime, dict[str, object]], object],
) -> None:
    assert found(freeing(wait, lambda table: table[2]), *READ_FREE) == []


def test_a_table_of_ones_own_may_be_freed() -> None:
    def make(runtime: ControlledRuntime) -> dict[str, Callable[[], object]]:
        def body() -> None:
            table = runtime.table(4, "SPTE")
            table.store(1, 1)
            table.end()

        return {"one": body, "two": body}

    assert found(make, ("one", 2), *ONE_TWO) == []


def test_a_spinning_task_holds_nothing() -> None:
    def make(runtime: ControlledRuntime) -> dict[str, Callable[[], object]]:
        table, done = runtime.table(4, "SPTE"), runtime.cell("done", False)

        def read() -> None:
            assert table[2] in (0, 1)
            done.store(True)
            runtime.relax()

        def free() -> None:
            table.store(2, 1)
            runtime.wait_until("the reader", lambda: done.value)
            table.end()

        return {"reader": read, "freer": free}

    assert found(make, ("reader", 2), ("freer", 2), ("reader", None), ("freer", None)) == []


# Objects found through a pointer.


def ending(wait: bool, *, change: bool = True) -> Make:
    """A reader that reads a pointer; a writer that changes it and ends what it led to, with or
    without waiting."""

    def make(runtime: ControlledRuntime) -> dict[str, Callable[[], object]]:
        pointer, done = runtime.cell("slots", "old"), runtime.cell("done", False)

        def read() -> None:
            assert pointer.value in ("old", "new")
            done.store(True)

        def replace() -> None:
            if change:
                pointer.store("new")
            if wait:
                runtime.wait_until("readers", lambda: done.value)
            runtime.ending(pointer)

        return {"reader": read, "writer": replace}

    return make


def test_an_ending_without_waiting_for_who_read_the_pointer() -> None:
    assert found(ending(False), ("reader", 2), ("writer", None), ("reader", None)) == [
        ("O3", "freed-without-waiting", "slots")
    ]


def test_an_ending_after_waiting() -> None:
    assert found(ending(True), ("reader", 2), ("writer", None), ("reader", None)) == []


def test_who_reads_the_new_pointer_is_not_waited_for() -> None:
    assert found(ending(False), ("writer", 2), ("reader", None), ("writer", None)) == []


def test_a_pointer_that_has_not_changed_ends_nothing() -> None:
    assert found(ending(False, change=False), ("reader", None), ("writer", None)) == []


def test_reports_name_tasks_and_how_they_were_found() -> None:
    def body(runtime: ControlledRuntime) -> Body:
        return Body([ProgramTask(name, part) for name, part in ending(False)(runtime).items()])  # type: ignore[arg-type]

    run = Executor(Small("ending", body)).execute(
        FollowTurns([Turn("reader", 2), Turn("writer", None)])
    )
    (report,) = races_of(run)
    text = report.render()
    assert "writer frees what slots led to without having waited for reader" in text
    assert "by the order of events" in text


def test_a_program_without_sptes_and_endings_has_no_such_race() -> None:
    assert (
        races_of(Executor(LOST_UPDATE).execute(FollowTurns([Turn("one", 2), Turn("two", None)])))
        == []
    )
