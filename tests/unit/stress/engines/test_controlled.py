"""The controlled engine: what it calls a deadlock, when tasks can run, and that a schedule is the
same whenever it is run."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Hashable, Sequence

import pytest

from mmu.probe import Instrument, override
from mmu.report import Report, Reporter
from mmu.sync import Sync
from mmu.sync.poison import Obituary, poison_table
from mmu.task import current
from stress.engines import scheduler
from stress.engines.carrier import POOL
from stress.engines.carrier_choice import THREADS
from stress.engines.controlled import ControlledRuntime
from stress.engines.program import Executor, ProgramTask, QuietProbe, Run, Strategy
from stress.engines.scheduler import Picker, Scheduler
from stress.engines.tasks import ControlledTask
from stress.search.bounded import DepthFirst
from stress.search.dpor import Dpor
from stress.search.random_walk import RandomWalk
from stress.search.schedule import Follow, Schedule

pytestmark = pytest.mark.usefixtures("carrier")


class Given:
    """A program made of a function from a runtime to its parts."""

    has_start = False

    def __init__(
        self,
        runtime: ControlledRuntime,
        make: Callable[[ControlledRuntime, Given], list[Callable[[], None]]],
    ) -> None:
        self.seen: list[object] = []
        self.found: list[Report] = []
        self.failures: list[str] = []
        runtime.on_task_error = lambda task, error: self.failures.append(f"{task.name}: {error!r}")
        self.parts: Sequence[ProgramTask] = [
            ProgramTask(f"t{number}", body) for number, body in enumerate(make(runtime, self))
        ]

    def start(self) -> None: ...

    def closing(self) -> Sequence[ProgramTask]:
        return ()

    def reports(self) -> Sequence[Report]:
        return self.found

    def errors(self) -> Sequence[str]:
        return self.failures

    def outcome(self) -> Hashable:
        return tuple(self.seen)


class Making:
    name = "given"

    def __init__(
        self,
        make: Callable[[ControlledRuntime, Given], list[Callable[[], None]]],
        *,
        progress: int | None = None,
        has_start: bool = False,
        closing: Callable[[], Sequence[ProgramTask]] | None = None,
    ) -> None:
        self._make = make
        self._progress = progress
        self._has_start = has_start
        self._closing = closing

    def build(self, runtime: ControlledRuntime, seed: int) -> Given:
        given = Given(runtime, self._make)
        given.has_start = self._has_start
        if self._progress is not None:
            given.progress = lambda: self._progress  # type: ignore[attr-defined]
        if self._closing is not None:
            given.closing = self._closing  # type: ignore[method-assign]
        return given


def every(
    make: Callable[[ControlledRuntime, Given], list[Callable[[], None]]], limit: int = 2000
) -> list[Run]:
    executor, strategy = Executor(Making(make), keep_extras=True), Dpor()
    runs = []
    while not strategy.exhausted:
        assert strategy.executions < limit
        runs.append(executor.execute(strategy))
    return runs


def test_opposite_orders_end_in_a_deadlock_that_says_who_waits_for_whom() -> None:
    def make(runtime: ControlledRuntime, given: Given) -> list[Callable[[], None]]:
        a, b = runtime.lock("a"), runtime.lock("b")

        def take(first: object, second: object) -> Callable[[], None]:
            def body() -> None:
                with first, second:  # type: ignore[attr-defined]
                    pass

            return body

        return [take(a, b), take(b, a)]

    reports = [run.reports[0] for run in every(make) if run.reports]
    assert {report.code for report in reports} == {"deadlock"}
    text = reports[0].render()
    assert "t0 waits for b, held by t1" in text
    assert "t1 waits for a, held by t0" in text


def test_a_wait_that_nobody_ends_is_a_deadlock_and_no_hang() -> None:
    def make(runtime: ControlledRuntime, given: Given) -> list[Callable[[], None]]:
        word = runtime.cell("word", 0)
        return [
            lambda: runtime.wait_until("the impossible", lambda: word.value == 7),
            lambda: word.store(1),
        ]

    runs = every(make)
    assert {run.signature for run in runs if not run.cut} == {"O10/deadlock/t0: the impossible"}


def test_a_wait_is_not_missed_when_the_word_changes_back() -> None:
    """True for a moment only: some schedules go on, in others the waiter waits for ever; both are
    seen."""

    def make(runtime: ControlledRuntime, given: Given) -> list[Callable[[], None]]:
        word = runtime.cell("word", 0)

        def pulse() -> None:
            word.value = 1
            word.value = 0

        return [lambda: runtime.wait_until("the pulse", lambda: word.value == 1), pulse]

    runs = [run for run in every(make) if not run.cut]
    assert {run.completed for run in runs} == {True, False}


def test_a_spin_goes_on_when_what_it_read_has_changed() -> None:
    def make(runtime: ControlledRuntime, given: Given) -> list[Callable[[], None]]:
        word = runtime.cell("word", 0)

        def spin() -> None:
            while word.value == 0:
                runtime.relax()
            given.seen.append("went on")

        return [spin, lambda: word.store(1)]

    runs = [run for run in every(make) if not run.cut]
    assert runs
    assert all(run.completed and run.outcome == ("went on",) for run in runs)
    assert max(len(run.trace) for run in runs) < 20


def test_a_spin_that_nobody_ends_is_a_livelock() -> None:
    def make(runtime: ControlledRuntime, given: Given) -> list[Callable[[], None]]:
        word = runtime.cell("word", 0)

        def spin() -> None:
            while word.value == 0:
                runtime.relax()

        return [spin]

    (run,) = every(make)
    assert run.reports[0].code == "livelock"


def test_two_that_keep_each_other_from_going_on_are_a_livelock_by_the_bound() -> None:
    def make(runtime: ControlledRuntime, given: Given) -> list[Callable[[], None]]:
        word = runtime.counter("word")

        def push(by: int) -> Callable[[], None]:
            def body() -> None:
                while abs(word.fetch_add(by)) < 1 << 60:
                    pass

            return body

        return [push(1), push(-1)]

    executor = Executor(Making(make), limit=300)
    run = executor.execute(RandomWalk(1))
    assert run.limit_hit
    assert [report.code for report in run.reports] == ["livelock"]


def test_to_do_the_same_again_and_again_is_a_livelock_even_without_a_pause() -> None:
    """A vCPU that faults for ever neither spins nor gets anywhere."""

    def make(runtime: ControlledRuntime, given: Given) -> list[Callable[[], None]]:
        words = runtime.table(4, "words")

        def body() -> None:
            while words[0] == 0:
                words.store(1, words[2] + 1)

        return [body]

    run = Executor(Making(make, progress=0), limit=300, fair_steps=400).execute(RandomWalk(1))
    assert [report.code for report in run.reports] == ["livelock"]


def test_a_long_walk_over_words_that_were_not_visited_before_is_no_livelock() -> None:
    def make(runtime: ControlledRuntime, given: Given) -> list[Callable[[], None]]:
        words = runtime.table(1_000, "words")
        return [lambda: [words.store(index, 1) for index in range(1_000)]]  # type: ignore[list-item, return-value]

    run = Executor(Making(make, progress=0), limit=300, fair_steps=400).execute(RandomWalk(1))
    assert run.limit_hit
    assert not run.completed
    assert run.reports == ()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not explored may take a thousand operations."""
    monkeypatch.setattr(scheduler, "MOST_UNEXPLORED", 1_000)


def forever(runtime: ControlledRuntime) -> Callable[[], None]:
    """Reads a word again and again."""
    word = runtime.cell("word", 0)

    def body() -> None:
        while word.value == 0:
            pass

    return body


@pytest.mark.usefixtures("impatient")
def test_getting_ready_that_does_not_end_is_a_livelock() -> None:
    run = Executor(Making(lambda runtime, given: [forever(runtime)], has_start=True)).execute(
        RandomWalk(1)
    )
    assert [report.code for report in run.reports] == ["livelock"]
    assert "setup" in run.reports[0].headline
    assert run.trace == []


@pytest.mark.usefixtures("impatient")
def test_an_observer_that_does_not_end_is_a_livelock() -> None:
    def make(runtime: ControlledRuntime, given: Given) -> list[Callable[[], None]]:
        look = forever(runtime)
        probe = QuietProbe(runtime.scheduler)

        class Looks(Instrument):
            @override
            def root_zapped(self, root: object) -> None:
                look()

        probe.attach(Looks())

        def body() -> None:
            assert probe.root_zapped is not None
            probe.root_zapped(None)  # type: ignore[arg-type]

        return [body, lambda: None]

    run = Executor(Making(make)).execute(RandomWalk(1))
    assert [report.code for report in run.reports] == ["livelock"]
    assert "observer" in run.reports[0].headline


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("in_a_task", [False, True])
def test_closing_that_does_not_end_is_a_livelock(in_a_task: bool) -> None:
    ends: list[Callable[[], None]] = []

    def make(runtime: ControlledRuntime, given: Given) -> list[Callable[[], None]]:
        ends.append(forever(runtime))
        return [lambda: None]

    def close() -> Sequence[ProgramTask]:
        if in_a_task:
            return [ProgramTask("teardown", ends[0])]
        ends[0]()
        return ()

    run = Executor(Making(make, closing=close)).execute(RandomWalk(1))
    assert [report.code for report in run.reports] == ["livelock"]
    assert ("teardown" if in_a_task else "closing") in run.reports[0].headline


def test_what_breaks_while_tasks_are_unwound_is_no_finding() -> None:
    def make(runtime: ControlledRuntime, given: Given) -> list[Callable[[], None]]:
        word = runtime.cell("word", 0)

        def body() -> None:
            try:
                runtime.wait_until("Godot", lambda: word.value == 1)
            finally:
                given.found.append(Report("O3", "late", "BUG: late", "", ""))

        return [body]

    run = Executor(Making(make)).execute(RandomWalk(1))
    assert [report.code for report in run.reports] == ["deadlock"]


def two_counters(runtime: ControlledRuntime, given: Given) -> list[Callable[[], None]]:
    """Two tasks that count to a hundred each."""
    word = runtime.counter("word")

    def count() -> None:
        for _ in range(100):
            word.add(1)

    return [count, count]


def test_a_schedule_longer_than_the_limit_that_ends_with_fair_turns_is_no_finding() -> None:
    run = Executor(Making(two_counters), limit=50).execute(RandomWalk(1))
    assert run.limit_hit
    assert run.completed
    assert not run.reports


def test_without_fair_turns_a_schedule_is_given_up_at_its_limit() -> None:
    run = Executor(Making(two_counters), limit=50, fair_steps=0).execute(RandomWalk(1))
    assert run.limit_hit
    assert not run.completed
    assert not run.reports, "nobody has looked whether it is a livelock"
    assert len(run.trace) == 50


def test_one_task_runs_at_a_time_and_every_operation_is_a_step(carrier: str) -> None:
    def make(runtime: ControlledRuntime, given: Given) -> list[Callable[[], None]]:
        words = runtime.table(2, "words")

        def body() -> None:
            given.seen.append(threading.get_ident())
            assert threading.get_ident() == current.task.ident == current.task.thread.ident
            words.store(0, words[0] + 1)

        return [body, body]

    runs = [run for run in every(make) if not run.cut]
    assert {len(run.trace) for run in runs} == {6}
    assert all(len(set(run.instance.seen)) == (2 if carrier == THREADS else 1) for run in runs)
    assert not any(threading.get_ident() in run.instance.seen for run in runs), (
        "the main thread alone gets a Ctrl-C"
    )
    assert {run.instance.parts[0].name for run in runs} == {"t0"}


def test_a_table_freed_under_an_announced_operation_is_touched_after_its_end() -> None:
    def make(runtime: ControlledRuntime, given: Given) -> list[Callable[[], None]]:
        table = runtime.table(2, "SPTE")
        reporter = Reporter(given.found.append)
        return [
            lambda: given.seen.append(table[1]),
            lambda: poison_table(table, Obituary("the table", reporter)),
        ]

    runs = [run for run in every(make) if not run.cut]
    assert {run.reports[0].code if run.reports else "" for run in runs} == {"", "use-after-free"}


def test_tasks_that_spawn_at_the_same_time_get_different_numbers() -> None:
    def make(runtime: ControlledRuntime, given: Given) -> list[Callable[[], None]]:
        return [
            lambda: given.seen.append(runtime.start("child", lambda: None).number) for _ in range(2)
        ]

    runs = [run for run in every(make) if not run.cut]
    assert all(sorted(map(int, map(str, run.instance.seen))) == [3, 4] for run in runs)
    assert all(run.completed for run in runs)


def test_join_waits_for_the_end() -> None:
    def make(runtime: ControlledRuntime, given: Given) -> list[Callable[[], None]]:
        word = runtime.cell("word", 0)

        def parent() -> None:
            runtime.join(runtime.start("child", lambda: word.store(1)))
            given.seen.append(word.value)

        return [parent]

    assert {run.outcome for run in every(make) if not run.cut} == {(1,)}


def test_daemons_are_not_waited_for_but_do_what_they_can() -> None:
    def make(runtime: ControlledRuntime, given: Given) -> list[Callable[[], None]]:
        queue = runtime.queue("work")

        def serve() -> None:
            while True:
                runtime.wait_until("work", lambda: len(queue) > 0)
                given.seen.append(queue.take())

        def ask() -> None:
            runtime.spawn("server", serve)
            queue.put("item")

        return [ask]

    runs = [run for run in every(make) if not run.cut]
    assert {tuple(run.instance.seen) for run in runs} == {("item",)}
    assert all(run.completed for run in runs)


def test_the_lockdep_and_rcu_of_plain_programs_work_under_control() -> None:
    def make(runtime: ControlledRuntime, given: Given) -> list[Callable[[], None]]:
        sync = Sync(runtime, Reporter(given.found.append))
        alive = runtime.cell("alive", True)
        pointer = runtime.cell("pointer", "old")

        def read() -> None:
            sync.rcu.read_lock()
            if pointer.value == "old":
                given.seen.append(alive.value)
            sync.rcu.read_unlock()

        def retire() -> None:
            pointer.value = "new"
            sync.rcu.synchronize()
            alive.value = False

        return [read, retire]

    runs = [run for run in every(make) if not run.cut]
    assert {run.outcome for run in runs} == {(), (True,)}
    assert not any(run.reports for run in runs)


def test_an_exception_in_a_task_is_an_error_with_its_name() -> None:
    def make(runtime: ControlledRuntime, given: Given) -> list[Callable[[], None]]:
        return [lambda: int("nothing")]

    (run,) = every(make)
    assert "t0: ValueError" in run.errors[0]


class Careless:
    name = "careless"
    exhausted = False

    def begin(self, scheduler: Scheduler) -> Picker:
        def pick() -> ControlledTask:
            if len(scheduler.trace) > 2:
                raise ValueError("a bug in a strategy")
            return scheduler.runnable[0]

        return pick

    def end(self, run: Run) -> None: ...


@pytest.mark.parametrize("waits", [False, True])
def test_a_strategy_that_raises_ends_the_schedule_and_leaves_nobody_parked(waits: bool) -> None:
    """The error is the strategy's own: no task of the model sees it, and goes another way."""
    caught: list[BaseException] = []

    def make(runtime: ControlledRuntime, given: Given) -> list[Callable[[], None]]:
        word = runtime.counter("word")

        def body() -> None:
            try:
                word.add(1)
                if waits:
                    runtime.wait_until("both", lambda: word.value == 2)
                word.add(1)
                word.add(1)
            except Exception as error:
                caught.append(error)

        return [body, body]

    executor = Executor(Making(make))
    with pytest.raises(ValueError, match="a bug in a strategy"):
        executor.execute(Careless())
    assert not caught
    assert executor.execute(RandomWalk(1)).limit_hit is False


def test_ctrl_c_stops_the_schedule_before_anybody_is_unwound() -> None:
    def make(runtime: ControlledRuntime, given: Given) -> list[Callable[[], None]]:
        word = runtime.counter("word")
        lock = runtime.lock("lock")

        def body(interrupts: bool) -> Callable[[], None]:
            def work() -> None:
                for number in range(300):
                    with lock:
                        word.value = word.value + 1
                    if interrupts and number == 100:
                        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

            return work

        return [body(interrupts=True), body(interrupts=False)]

    executor = Executor(Making(make))
    for seed in range(10):
        with pytest.raises(KeyboardInterrupt):
            executor.execute(RandomWalk(seed))
    assert [
        run.outcome for run in every(lambda runtime, given: [lambda: given.seen.append(1)])
    ] == [(1,)]


@pytest.mark.parametrize("strategy", [RandomWalk(5), DepthFirst()])
def test_a_schedule_is_the_same_again(strategy: Strategy) -> None:
    def make(runtime: ControlledRuntime, given: Given) -> list[Callable[[], None]]:
        word = runtime.counter("word")

        def body() -> None:
            given.seen.append(word.fetch_add(1))

        return [body, body, body]

    executor = Executor(Making(make))
    for _ in range(10):
        first = executor.execute(strategy)
        schedule = Schedule.decode(Schedule.of(first).encode())
        second = executor.execute(Follow(schedule.choices))
        assert second.trace == first.trace
        assert second.outcome == first.outcome


def test_schedules_leave_no_file_descriptors_and_no_threads_behind() -> None:
    def make(runtime: ControlledRuntime, given: Given) -> list[Callable[[], None]]:
        return [lambda: None, lambda: None]

    executor, strategy = Executor(Making(make)), RandomWalk(1)
    executor.execute(strategy)
    threads = threading.active_count()
    signal = POOL.main
    for _ in range(50):
        executor.execute(strategy)
    assert threading.active_count() == threads
    assert POOL.main is signal


def test_virtual_time_goes_on_with_steps_and_sleeps() -> None:
    def make(runtime: ControlledRuntime, given: Given) -> list[Callable[[], None]]:
        def body() -> None:
            start = runtime.now()
            runtime.sleep(3600)
            given.seen.append(round((runtime.now() - start) / 1e9))

        return [body]

    assert every(make)[0].outcome == (3600,)
