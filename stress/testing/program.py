"""A test's function as a program: what it is given, and what its exceptions become."""

from __future__ import annotations

import inspect
import linecache
import traceback
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, Final, TypeVar

from mmu.report import Report, Reporter, section
from mmu.runtime import Cell, Counter, Queue, RawLock, Table
from mmu.sync import Rcu, Sync
from mmu.task import Task
from stress.engines.carrier_choice import SC, THREADS
from stress.engines.controlled import ControlledRuntime
from stress.engines.program import Executor, ProgramTask, Strategy
from stress.engines.timed import BodyWaits
from stress.engines.timed_runtime import TimedRuntime
from stress.scenario.errors import StressError
from stress.testing.objects.frames import unsupported
from stress.testing.objects.hooks import InstructionHooks, hooks
from stress.testing.objects.watch import SharedParts, Watch, is_watched
from stress.testing.plain.before import Before
from stress.testing.plain.checked import make_again, served
from stress.testing.plain.patches import patched
from stress.testing.plain.session import PACKAGE, PlainSession, activate
from stress.testing.plain.threads import Crew, crew_of

T = TypeVar("T")

RULE = "TEST"
"""The rule of reports that come from the test's own assertions and exceptions."""
THE_CHECK = "the check at the end"
MAIN = "main"
"""The program's own function, where it is a task."""


class NothingExplored(StressError):
    """A test that looks green and has tested nothing: no schedule was run, the program has no task,
    or no two of its tasks touch anything that they share."""


class ExploredSync(Sync):
    """What a program makes everything from: checked locks, RCU and reference counts as
    `mmu.sync.Sync` makes them, shared words and queues, and tasks; all under control of the
    scheduler. `runtime` has the rest."""

    def __init__(self, runtime: TimedRuntime, reporter: Reporter, crew: Crew) -> None:
        super().__init__(runtime, reporter, rcu_class=Rcu)
        self._runtime = runtime
        self._crew = crew
        self.own = len(runtime.scheduler.registry)
        """How many of the scheduler's words were there before the program made any."""

    def cell(self, name: str, value: T) -> Cell[T]:
        """A shared word that holds anything immutable: `cell.value` reads and writes it, a step
        each."""
        return self.runtime.cell(name, value)

    def counter(self, name: str, value: int = 0) -> Counter:
        """A shared integer with atomic operations."""
        return self.runtime.counter(name, value)

    def table(self, size: int, name: str = "table") -> Table:
        """`size` shared integers, all 0."""
        return self.runtime.table(size, name)

    def queue(self, name: str = "queue") -> Queue[Any]:
        """A queue between tasks that never blocks; `wait_until` it has something."""
        return self.runtime.queue(name)

    def lock(self, name: str = "lock") -> RawLock:
        """A bare lock, like `threading.Lock`: without lockdep's rules, so that only a deadlock that
        happens is found."""
        return self.runtime.lock(name)

    def mb(self) -> None:
        """A full memory barrier, smp_mb(): with memory="tso" the task goes on when all its stores
        have reached memory."""
        self.runtime.mb("")

    def wait_until(self, predicate: Callable[[], bool], what: str = "") -> None:
        """The calling task cannot go on until `predicate`, over shared words, is true; nothing
        spins. `what` is for reports."""
        self.runtime.wait_until(what or name_of(predicate, "a condition"), predicate)

    def spawn(
        self,
        function: Callable[..., object],
        *args: Any,
        name: str | None = None,
        daemon: bool = False,
    ) -> Task:
        """A task that calls `function(*args)`; called by the program or by a task. A daemon need
        not end. Without a name it is called after the function, with a number."""
        if inspect.iscoroutinefunction(function):
            raise TypeError(
                f"{name_of(function, 'task')} is a coroutine function: tasks are plain functions"
            )
        crew = self._crew
        if name is None:
            name = crew.name_for(name_of(function, "task"), numbered=True)
        elif name in crew.names:
            raise ValueError(
                f"there are two tasks called {name!r}: names tell them apart in schedules and "
                "reports"
            )
        else:
            name = crew.name_for(name, numbered=False)
        thread = crew.dummy(name)

        def body() -> None:
            with crew.as_thread(thread):
                function(*args)

        return self._runtime.start(name, body, daemon=daemon)

    def join(self, task: Task) -> None:
        """Wait until a spawned task has ended."""
        self.runtime.join(task)


def name_of(function: Callable[..., object], otherwise: str) -> str:
    """A function's own name; `otherwise` for a lambda or what has none."""
    name = getattr(function, "__name__", "<")
    return otherwise if name.startswith("<") else name


MOST_BEGINNINGS: Final = 50
"""After so many beginnings an exploration goes on although it finds more that is shared: the names
of parts differ from schedule to schedule."""


class MoreShared(Exception):
    """A schedule has shared what was not known to be shared."""


ProgramFunction = (
    Callable[[ExploredSync], "Callable[[], object] | None"]
    | Callable[[], "Callable[[], object] | None"]
)
"""Makes everything shared and starts the tasks; may return a check for the end: an assertion, or a
condition."""


class FunctionInstance:
    """One program, built and ready to run once."""

    parts: Sequence[ProgramTask] = ()
    has_start = False

    def __init__(
        self,
        program: FunctionProgram,
        runtime: TimedRuntime,
        session: PlainSession,
        checked: Sequence[Any],
    ) -> None:
        self.watch = session.watch
        self._reporter = Reporter(sink=None)
        self._crew = crew = crew_of(session)
        self._check: Callable[[], object] | None = None
        self._program = program
        runtime.on_task_error = self._failed
        self.sync = ExploredSync(runtime, self._reporter, crew)
        session.sync = self.sync
        make_again(checked, session)
        if program.body_is_task:
            crew.name_for(MAIN, numbered=False)
            self.parts = [ProgramTask(MAIN, self._as_main(self._body))]
            return
        try:
            with crew.as_main():
                self._body()
        finally:
            # whatever the function has made of the refusal
            if runtime.scheduler.body_waits:
                raise BodyWaits
        if not runtime.scheduler.unfinished:
            raise NothingExplored(
                "the program has no task: start some with sync.spawn(function) or "
                "threading.Thread(...).start()"
            )

    def start(self) -> None:
        """Nobody waits for it."""

    def closing(self) -> Sequence[ProgramTask]:
        """The check at the end, if there is one."""
        check = self._check
        if check is None:
            return []
        return [ProgramTask(THE_CHECK, self._as_main(lambda: judge(check)))]

    def reports(self) -> Sequence[Report]:
        """Exceptions of tasks, and the rules of `mmu.sync` that were broken."""
        return self._reporter.reports

    def errors(self) -> Sequence[str]:
        """The test's function has no part of the harness in it."""
        return ()

    def outcome(self) -> Hashable:
        """Programs are compared by what they assert."""
        return None

    def _body(self) -> None:
        self._check = self._program.call(self.sync)

    def _as_main(self, body: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            with self._crew.as_main():
                body()

        return run

    def _failed(self, task: Task, error: BaseException) -> None:
        self._reporter.emit(report_of(task.name, error))


class FunctionProgram:
    """A test's function as a program that can be run again and again.

    The function makes what tasks share and starts them. If it waits for something, or starts
    threads of its own, then `body_is_task`: it is a task like any other.
    """

    carrier = THREADS
    """The function, and what it calls, may keep things by thread."""
    timed = True

    def __init__(self, function: ProgramFunction, memory: str = SC) -> None:
        self.memory = memory
        self.name = name_of(function, "program")
        self.body_is_task = False
        self._function: Any = function
        self._takes_sync = _takes_an_argument(function)
        self._before = Before({})
        self.parts = SharedParts()
        """What is known of its plain objects."""
        self._built = self._begun = 0
        self._hooks: InstructionHooks | None = None

    @contextmanager
    def under_control(self) -> Iterator[None]:
        """While the block runs, the standard library serves this program's tasks."""
        with served(), patched() as by_name, closing(hooks(is_watched)) as found:
            self._hooks = found
            self._before = before = Before(by_name)
            try:
                before.search(self._function)
                yield
            finally:
                activate(None)
                before.put_back()
                self._before = Before({})
                self._hooks = None

    def settled(self, run: Callable[[], T]) -> T:
        """The result of `run`, which runs schedules of this program: begun anew if it turns out
        that the function has to be a task."""
        while True:
            self._built = 0
            self._begun += 1
            try:
                return run()
            except BodyWaits:
                self.body_is_task = True
            except MoreShared:
                pass  # now it is known

    def survey(self, strategies: Iterable[Strategy], *, limit: int, granularity: str) -> None:
        """Run a schedule with each of the strategies to see which parts of plain objects are
        shared. Their failures are not looked at."""
        executor = Executor(self, limit=limit, granularity=granularity)
        for strategy in strategies:
            self._built = 0
            executor.execute(strategy).release()
            self.parts.found()
        self.parts.surveyed()

    def looked_at(self) -> None:
        """After a schedule: raises `MoreShared` if it has shared a part that was not known to
        be."""
        if self.parts.found() and self._begun < MOST_BEGINNINGS:
            raise MoreShared

    def build(self, runtime: ControlledRuntime, seed: int) -> FunctionInstance:  # noqa: ARG002 - nothing here is left to chance
        """Call the function, or make a task that does."""
        assert isinstance(runtime, TimedRuntime)
        session = PlainSession(runtime, self._before.paths)
        self._built += 1
        if self._hooks is not None:
            self._watch(session, self._hooks)
        activate(session)
        return FunctionInstance(self, runtime, session, self._before.checked)

    def _watch(self, session: PlainSession, hooks: InstructionHooks) -> None:
        """Look at plain objects if there is a reason to: all accesses are looked at in schedules
        number 1, 2, 4, 8, ..."""
        looking = self._built & (self._built - 1) == 0
        if unsupported() is not None or not (looking or self.parts.shared or self.parts.spins):
            hooks.want(None)
            return
        session.watch = watch = Watch(session, self.parts, hooks, looking=looking)
        hooks.want(watch.look_at)

    def call(self, sync: ExploredSync) -> Callable[[], object] | None:
        """Call the function; its check, if it returns one."""
        check = self._function(sync) if self._takes_sync else self._function()
        return check if callable(check) else None


def _takes_an_argument(function: Callable[..., object]) -> bool:
    """Whether a program wants its `sync`; one whose signature is not known does."""
    try:
        inspect.signature(function).bind()
    except (TypeError, ValueError):
        return True
    return False


class CheckFailed(AssertionError):
    """The condition that a program returned is false."""


def judge(check: Callable[[], object]) -> None:
    """Run a check: it may raise, or return something false, except None."""
    result = check()
    if result is not None and not result:
        code = getattr(check, "__code__", None)
        where = (
            f", line {code.co_firstlineno}: "
            f"{linecache.getline(code.co_filename, code.co_firstlineno).strip()}"
            if code
            else ""
        )
        raise CheckFailed(f"the condition is {result!r}{where}")


def report_of(task: str, error: BaseException) -> Report:
    """An exception of a task as a report; two from the same place are one finding, whichever task
    it was."""
    summary = traceback.TracebackException.from_exception(error)
    summary.stack[:] = [frame for frame in summary.stack if not frame.filename.startswith(PACKAGE)]
    place = f"{summary.stack[-1].filename}:{summary.stack[-1].lineno}" if summary.stack else ""
    first, _, _ = str(error).partition("\n")
    lines = [line for chunk in summary.format() for line in chunk.rstrip("\n").split("\n")]
    return Report(
        RULE,
        "assertion" if isinstance(error, AssertionError) else "exception",
        f"{type(error).__name__} in {task}" + (f": {first}" if first else ""),
        "no task may end with an exception, and the check at the end holds",
        "the test",
        task=task,
        subject=f"{type(error).__name__} {place}".rstrip(),
        sections=(section("traceback", lines),),
    )
