"""Store buffers: what goes into one, what is read from it, what empties it, and what others see."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mmu.report import Report, Reporter
from mmu.runtime import Cell
from mmu.sync import Sync
from mmu.sync.poison import Obituary, poison_table
from stress.engines.controlled import ControlledRuntime
from stress.engines.program import Executor, ProgramTask, Run
from stress.engines.steps import KINDS
from stress.search.bounded import DepthFirst
from stress.search.dpor import Dpor
from stress.search.races import races_of
from stress.search.random_walk import RandomWalk
from stress.search.schedule import Follow, Schedule
from stress.search.turns import FollowTurns, Turn
from tests.unit.stress.search.programs import Body, Small

pytestmark = pytest.mark.usefixtures("carrier")

Tasks = list[tuple[str, Callable[[], object]]]


def program(make: Callable[[ControlledRuntime], Tasks]) -> Small:
    """Tasks whose results are the outcome."""

    def build(runtime: ControlledRuntime) -> Body:
        seen: dict[str, object] = {}

        def part(name: str, body: Callable[[], object]) -> ProgramTask:
            return ProgramTask(name, lambda: seen.__setitem__(name, body()))

        return Body(
            [part(name, body) for name, body in make(runtime)],
            result=lambda: tuple(sorted(seen.items())),
        )

    return Small("buffers", build)


def turned(make: Callable[[ControlledRuntime], Tasks], *turns: str) -> Run:
    """One schedule: each task in its turn until it has to wait."""
    executor = Executor(program(make), keep_extras=True, memory="tso")
    return executor.execute(FollowTurns([Turn(task, None) for task in turns]))


def outcomes(make: Callable[[ControlledRuntime], Tasks], memory: str = "tso") -> set[object]:
    executor, search = Executor(program(make), keep_extras=True, memory=memory), Dpor()
    found: set[object] = set()
    while not search.exhausted:
        run = executor.execute(search)
        assert not run.errors
        if not run.cut:
            found.add(run.outcome if run.completed else run.signature)
    return found


def stale(*between: str) -> Callable[[ControlledRuntime], Tasks]:
    """One task stores to x and then does something; the other can tell when x is seen late: it sees
    that the something was done, and the old x."""

    def make(runtime: ControlledRuntime) -> Tasks:
        x, flag = runtime.cell("x", 0), runtime.counter("flag")
        word, lock = runtime.counter("word"), runtime.lock("lock")
        table, queue = runtime.table(1, "table"), runtime.queue("queue")
        rwlock = runtime.rwlock("fair", "rw")
        done: list[str] = []
        what: dict[str, Callable[[], object]] = {
            "nothing": lambda: None,
            "load": lambda: word.value,
            "xchg": lambda: word.xchg(1),
            "failed cmpxchg": lambda: word.cmpxchg(7, 8),
            "add": lambda: word.add(1),
            "store_mb": lambda: word.store(1),
            "table xchg": lambda: table.xchg(0, 1),
            "mb": lambda: runtime.mb("test"),
            "lock": lock.acquire,
            "trylock": lambda: lock.acquire(False),
            "read lock": lambda: rwlock.gen_rlock().acquire(),
            "queue": lambda: queue.put(1),
            "spawn": lambda: runtime.spawn("child", lambda: None),
            "sleep": lambda: runtime.sleep(0.001),
            "resched": runtime.resched,
            "free": table.end,
        }

        def writer() -> None:
            x.value = 1
            for each in between:
                what[each]()
            done.append("done")
            _ = flag.value  # a step after it

        def reader() -> tuple[bool, int]:
            _ = flag.value
            return bool(done), x.value

        return [("writer", writer), ("reader", reader)]

    return make


@pytest.mark.parametrize(
    ("between", "late"),
    [
        ("nothing", True),
        ("load", True),
        ("resched", True),
        ("xchg", False),
        ("failed cmpxchg", False),
        ("add", False),
        ("store_mb", False),
        ("table xchg", False),
        ("mb", False),
        ("lock", False),
        ("trylock", False),
        ("read lock", False),
        ("queue", False),
        ("spawn", False),
        ("sleep", False),
        ("free", False),
    ],
)
def test_what_empties_the_buffer(between: str, late: bool) -> None:
    executor, search = Executor(program(stale(between)), memory="tso"), DepthFirst()
    found = set()
    while not search.exhausted:
        found.add(dict(executor.execute(search).outcome)["reader"])  # type: ignore[call-overload]
    assert ((True, 0) in found) is late
    assert (True, 1) in found
    assert (False, 0) in found


def test_a_task_reads_its_own_newest_store() -> None:
    def make(runtime: ControlledRuntime) -> Tasks:
        x, table = runtime.cell("x", 0), runtime.table(2, "table")

        def writer() -> tuple[int, ...]:
            x.value = 1
            x.value = 2
            table.store(1, 5)
            return x.value, table[1], *table[0:2]

        return [("writer", writer), ("reader", lambda: (x.value, table[1]))]

    run = turned(make, "reader", "writer")
    assert run.outcome == (("reader", (0, 0)), ("writer", (2, 5, 0, 5)))
    assert {dict(each)["writer"] for each in outcomes(make)} == {(2, 5, 0, 5)}  # type: ignore[call-overload]


def test_stores_leave_in_their_order_and_a_task_ends_when_all_have() -> None:
    def make(runtime: ControlledRuntime) -> Tasks:
        x, y = runtime.cell("x", 0), runtime.cell("y", 0)

        def writer() -> None:
            x.value = 1
            y.value = 1

        def reader() -> tuple[int, int]:
            seen = y.value
            return seen, x.value

        return [("writer", writer), ("reader", reader)]

    seen = {dict(each)["reader"] for each in outcomes(make)}  # type: ignore[call-overload]
    assert seen == {(0, 0), (0, 1), (1, 1)}


def test_whoever_joins_a_task_sees_its_stores() -> None:
    def make(runtime: ControlledRuntime) -> Tasks:
        x = runtime.cell("x", 0)

        def parent() -> int:
            child = runtime.start("child", lambda: setattr(x, "value", 1))
            runtime.join(child)
            return x.value

        return [("parent", parent)]

    assert outcomes(make) == {(("parent", 1),)}


def test_a_lock_is_held_until_its_release_is_drained() -> None:
    def make(runtime: ControlledRuntime) -> Tasks:
        lock = runtime.lock("lock")

        def holder() -> tuple[bool, bool]:
            lock.acquire()
            before = lock.locked()  # type: ignore[attr-defined]
            lock.release()
            return before, lock.locked()  # type: ignore[attr-defined]

        def other() -> bool:
            taken = lock.acquire(False)
            if taken:
                lock.release()
            return taken

        return [("holder", holder), ("other", other)]

    run = turned(make, "holder", "other", "holder's buffer")
    assert run.outcome == (("holder", (True, False)), ("other", False))
    assert {dict(each)["other"] for each in outcomes(make)} == {True, False}  # type: ignore[call-overload]


@pytest.mark.parametrize("kind", ["lock", "read", "write"])
def test_a_second_release_is_refused_while_the_first_is_in_the_buffer(kind: str) -> None:
    def make(runtime: ControlledRuntime) -> Tasks:
        rwlock = runtime.rwlock("fair", "rw")
        lock = {
            "lock": runtime.lock("lock"),
            "read": rwlock.gen_rlock(),
            "write": rwlock.gen_wlock(),
        }[kind]

        def holder() -> None:
            lock.acquire()
            lock.release()
            lock.release()

        return [("holder", holder)]

    run = turned(make, "holder")
    assert ["release unlocked lock" in error for error in run.errors] == [True]


def test_a_critical_section_keeps_its_stores_together() -> None:
    def make(runtime: ControlledRuntime) -> Tasks:
        lock, x = runtime.rwlock("fair", "rw"), runtime.counter("x")

        def add() -> int:
            handle = lock.gen_wlock()
            handle.acquire()
            now = x.value
            x.value = now + 1
            handle.release()
            return now

        return [("one", add), ("two", add)]

    assert outcomes(make) == {
        (("one", 0), ("two", 1)),
        (("one", 1), ("two", 0)),
    }


def test_a_lock_that_was_passed_before_the_start_is_not_waited_for() -> None:
    class Started(Body):
        def start(self) -> None:
            go.store(True)

    def build(runtime: ControlledRuntime) -> Body:
        nonlocal go
        go, x, y = runtime.cell("go", False), runtime.cell("x", 0), runtime.cell("y", 0)
        lock = runtime.lock("lock")

        def early() -> None:
            lock.acquire()
            lock.release()
            runtime.wait_until("the start", lambda: go.value)
            x.value = 1
            _ = y.value, y.value

        def holder() -> None:
            runtime.wait_until("the start", lambda: go.value)
            lock.acquire()
            runtime.wait_until("x", lambda: x.value == 1)
            lock.release()

        return Started([ProgramTask("early", early), ProgramTask("holder", holder)], has_start=True)

    go: Cell[bool] = Cell("", False)
    executor = Executor(Small("early", build), memory="tso")
    turns = [Turn("holder", 2), Turn("early", 2), Turn("early's buffer", None)]
    run = executor.execute(FollowTurns(turns))
    assert run.completed
    assert run.reports == ()


def test_a_wait_sees_what_its_task_has_stored_and_keeps_it_in_the_buffer() -> None:
    def make(runtime: ControlledRuntime) -> Tasks:
        x, y = runtime.cell("x", 0), runtime.cell("y", 0)

        def waiter() -> int:
            x.value = 1
            runtime.wait_until("its own store", lambda: x.value == 1)
            return y.value

        def other() -> int:
            y.value = 1
            return x.value

        return [("waiter", waiter), ("other", other)]

    assert (("other", 0), ("waiter", 0)) in outcomes(make)
    assert (("other", 0), ("waiter", 0)) not in outcomes(make, "sc")


def test_a_wait_goes_on_when_a_store_is_drained() -> None:
    def make(runtime: ControlledRuntime) -> Tasks:
        x = runtime.cell("x", 0)

        def waiter() -> int:
            runtime.wait_until("x", lambda: x.value == 1)
            return x.value

        def other() -> None:
            x.value = 2
            x.value = 1

        return [("waiter", waiter), ("other", other)]

    assert outcomes(make) == {(("other", None), ("waiter", 1))}


def test_a_wait_that_has_read_its_own_store_still_sees_those_of_others() -> None:
    def make(runtime: ControlledRuntime) -> Tasks:
        x = runtime.cell("x", 0)

        def waiter() -> int:
            x.value = 1
            runtime.wait_until("two", lambda: x.value == 2)
            return x.value

        def other() -> None:
            runtime.wait_until("one", lambda: x.value == 1)
            x.value = 2

        return [("waiter", waiter), ("other", other)]

    assert outcomes(make) == {(("other", None), ("waiter", 2))}


def test_a_spin_ends_when_a_store_is_drained() -> None:
    def make(runtime: ControlledRuntime) -> Tasks:
        x = runtime.cell("x", 0)

        def spinner() -> int:
            while not x.value:
                runtime.relax()
            return x.value

        return [("spinner", spinner), ("other", lambda: setattr(x, "value", 1))]

    assert outcomes(make) == {(("other", None), ("spinner", 1))}


@pytest.mark.parametrize("reads", ["before", "after", "never"])
def test_a_spin_does_not_go_on_because_of_its_own_stores(reads: str) -> None:
    def make(runtime: ControlledRuntime) -> Tasks:
        x, tries, more = runtime.cell("x", 0), runtime.cell("tries", 0), runtime.cell("more", 0)

        def spinner() -> int:
            rounds = 0
            while not x.value and tries.value < 10:
                rounds += 1
                _ = more.value if reads == "before" else None
                more.value = rounds
                _ = more.value if reads == "after" else runtime.mb("so that it is drained")
                runtime.relax()
            return rounds

        def other() -> None:
            x.value = 1

        return [("spinner", spinner), ("other", other)]

    run = turned(make, *["spinner", "spinner's buffer"] * 3, "other")
    assert dict(run.outcome)["spinner"] == 1  # type: ignore[call-overload]


def test_a_spin_on_its_own_store_sees_what_replaces_it() -> None:
    def make(runtime: ControlledRuntime) -> Tasks:
        x = runtime.cell("x", 0)

        def spinner() -> int:
            x.value = 1
            while x.value == 1:
                runtime.relax()
            return x.value

        def other() -> None:
            runtime.wait_until("one", lambda: x.value == 1)
            x.value = 2

        return [("spinner", spinner), ("other", other)]

    assert outcomes(make) == {(("other", None), ("spinner", 2))}
    run = turned(make, "spinner", "spinner's buffer", "other", "other's buffer", "spinner")
    kinds = [(run.names[task - 1], KINDS[kind]) for task, kind, _ in run.trace]
    assert kinds.index(("spinner", "relax")) < kinds.index(("other", "mb"))


def test_a_loop_of_stores_comes_to_its_limit() -> None:
    def make(runtime: ControlledRuntime) -> Tasks:
        x, stop = runtime.cell("x", 0), [False]

        def forever() -> None:
            while not stop:
                x.value = 1
            while True:
                x.value = 1

        return [("forever", forever)]

    run = Executor(program(make), limit=50, fair_steps=50, memory="tso").execute(RandomWalk(1))
    assert run.limit_hit
    assert not run.completed


def test_what_is_in_a_buffer_when_a_schedule_is_given_up_goes_nowhere() -> None:
    cells: list[Cell[int]] = []

    def make(runtime: ControlledRuntime) -> Tasks:
        x, y = runtime.cell("x", 0), runtime.cell("y", 0)
        cells.append(x)

        def writer() -> None:
            x.value = 1
            runtime.wait_until("never", lambda: y.value == 9)

        return [("writer", writer)]

    run = Executor(program(make), memory="tso").execute(Follow([1, 4]))
    assert run.cut
    assert cells[0].peek() == 0  # type: ignore[attr-defined]


def _freed_table(runtime: ControlledRuntime) -> Body:
    reporter = Reporter(sink=None)
    table, order = runtime.table(2, "SPTE"), runtime.cell("order", 0)

    def writer() -> None:
        table.store(1, 7)
        _ = order.value

    def freer() -> None:
        poison_table(table, Obituary("page 0x1000", reporter))

    return Body(
        [ProgramTask("writer", writer), ProgramTask("freer", freer)], lambda: reporter.reports
    )


def test_a_store_that_is_drained_after_its_table_was_freed_is_a_use_after_free() -> None:
    executor = Executor(Small("late", _freed_table), keep_extras=True, memory="tso")
    run = executor.execute(FollowTurns([Turn("writer", None), Turn("freer", None)]))
    (report,) = run.reports
    assert (report.rule, report.code, report.task) == ("O2", "use-after-free", "writer")
    assert report.sentence == "page 0x1000 was freed, then entry 1 written by writer's buffer"


def test_a_plain_store_over_a_write_that_its_task_has_not_seen_is_a_race_when_it_was_made() -> None:
    def build(runtime: ControlledRuntime) -> Body:
        table = runtime.table(1, "SPTE")
        return Body(
            [
                ProgramTask("plain", lambda: table.store(0, 1)),
                ProgramTask("atomic", lambda: _ignore(table.xchg(0, 2))),
            ]
        )

    def races(*turns: str) -> list[Report]:
        executor = Executor(Small("races", build), keep_extras=True, memory="tso")
        return races_of(executor.execute(FollowTurns([Turn(turn, None) for turn in turns])))

    assert [report.code for report in races("plain", "atomic")] == ["unseen-write-overwritten"]
    assert races("plain", "plain's buffer", "atomic") == []


def _ignore(_: object) -> None: ...


def test_a_plain_store_after_what_its_task_has_seen_is_no_race_whenever_it_is_drained() -> None:
    def build(runtime: ControlledRuntime) -> Body:
        table, flag = runtime.table(1, "SPTE"), runtime.counter("flag")

        def first() -> None:
            table.store(0, 1)
            flag.add(1)

        def second() -> None:
            if flag.value:
                table.store(0, 2)

        return Body([ProgramTask("first", first), ProgramTask("second", second)])

    executor, search = Executor(Small("races", build), keep_extras=True, memory="tso"), Dpor()
    stored = 0
    while not search.exhausted:
        run = executor.execute(search)
        assert races_of(run) == []
        stored += any(run.buffers.get(task) == 3 for task, _, _ in run.trace)
    assert stored


def _reading(runtime: ControlledRuntime) -> Tasks:
    """A reader that has stored before, and an updater that waits for it."""
    sync = Sync(runtime, Reporter(sink=None))
    published, note = runtime.cell("published", 1), runtime.cell("note", 0)
    alive = [True]

    def reader() -> tuple[int, bool]:
        note.value = 1
        sync.rcu.read_lock()
        found = published.value
        usable = alive[0]
        _ = note.value
        sync.rcu.read_unlock()
        sync.rcu.read_lock()
        again = published.value
        sync.rcu.read_unlock()
        return found + again, usable

    def updater() -> int:
        published.value = 0
        sync.rcu.synchronize()
        alive[0] = False
        return note.value

    return [("reader", reader), ("updater", updater)]


def test_an_rcu_reader_is_seen_at_once_although_its_other_stores_are_not() -> None:
    """Its sections need no barrier: a grace period waits for it, and then sees its stores."""
    seen = outcomes(_reading)
    assert {dict(each)["reader"] for each in seen} >= {(2, True), (1, True), (0, True)}  # type: ignore[call-overload]
    for each in seen:
        (found, usable), note = dict(each)["reader"], dict(each)["updater"]  # type: ignore[call-overload]
        assert usable or found < 2
        assert note or found < 2  # its first section was over when the grace period ended


def test_the_same_schedule_is_the_same_again() -> None:
    executor = Executor(program(stale("xchg", "nothing")), keep_extras=True, memory="tso")
    walk = RandomWalk(5)
    for _ in range(20):
        run = executor.execute(walk)
        again = executor.execute(Follow(Schedule.of(run).choices))
        assert (again.trace, again.outcome) == (run.trace, run.outcome)


def test_a_barrier_with_nothing_stored_before_it_is_no_step() -> None:
    def make(runtime: ControlledRuntime) -> Tasks:
        x = runtime.counter("x")

        def task() -> None:
            runtime.mb("first")
            x.value = 1
            runtime.mb("second")
            runtime.mb("third")
            x.value = 2
            x.add(1)

        return [("task", task)]

    kinds = [KINDS[kind] for _, kind, _ in turned(make, "task").trace]
    assert kinds == ["start", "store", "mb", "store", "add"]


def test_a_deadlock_names_tasks_and_no_buffers() -> None:
    def make(runtime: ControlledRuntime) -> Tasks:
        x = runtime.cell("x", 0)

        def waiter() -> None:
            x.value = 1
            runtime.wait_until("two", lambda: x.value == 2)

        return [("waiter", waiter)]

    run = turned(make, "waiter")
    assert [report.code for report in run.reports] == ["deadlock"]
    assert run.reports[0].subject == "waiter: two"
    assert [each.task for each in run.blocked] == [1]
