"""A test's function as a program: what it is given, and what its exceptions become."""

from __future__ import annotations

import inspect
import linecache
import os
import traceback
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mmu.report import Report, Reporter, section
from mmu.runtime import Cell, Counter, Queue, RawLock, Table
from mmu.sync import Rcu, Sync
from mmu.task import Task
from stress.engines.carrier_choice import SC, THREADS
from stress.engines.controlled import ControlledRuntime
from stress.engines.program import ProgramTask
from stress.scenario.errors import StressError

T = TypeVar("T")

PACKAGE = str(Path(__file__).resolve().parent.parent) + os.sep
"""Frames in here are the harness's, not the test's."""
RULE = "TEST"
"""The rule of reports that come from the test's own assertions and exceptions."""
THE_CHECK = "the check at the end"


class NothingExplored(StressError):
    """A test that looks green and has tested nothing: no schedule was run, or the program has no
    task."""


class ExploredSync(Sync):
    """What a program makes everything from: checked locks, RCU and reference counts as
    `mmu.sync.Sync` makes them, shared words and queues, and tasks; all under control of the
    scheduler. `runtime` has the rest."""

    def __init__(self, runtime: ControlledRuntime, reporter: Reporter) -> None:
        super().__init__(runtime, reporter, rcu_class=Rcu)
        self._runtime = runtime
        self._counts: dict[str, int] = {}
        self._names: set[str] = set()
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
        if name is None:
            base = name_of(function, "task")
            self._counts[base] = number = self._counts.get(base, 0) + 1
            name = f"{base}{number}"
        if name in self._names:
            raise ValueError(
                f"there are two tasks called {name!r}: names tell them apart in schedules and "
                "reports"
            )
        self._names.add(name)
        return self._runtime.start(name, lambda: _call(function, args), daemon=daemon)

    def join(self, task: Task) -> None:
        """Wait until a spawned task has ended."""
        self.runtime.join(task)


def _call(function: Callable[..., object], args: tuple[Any, ...]) -> None:
    function(*args)


def name_of(function: Callable[..., object], otherwise: str) -> str:
    """A function's own name; `otherwise` for a lambda or what has none."""
    name = getattr(function, "__name__", "<")
    return otherwise if name.startswith("<") else name


ProgramFunction = Callable[[ExploredSync], "Callable[[], object] | None"]
"""Makes everything shared and spawns the tasks; may return a check for the end: an assertion, or a
condition."""


class FunctionInstance:
    """One program, built and ready to run once."""

    parts: Sequence[ProgramTask] = ()
    has_start = False

    def __init__(self, function: ProgramFunction, runtime: ControlledRuntime) -> None:
        self._reporter = Reporter(sink=None)
        runtime.on_task_error = self._failed
        self.sync = ExploredSync(runtime, self._reporter)
        self._check = function(self.sync)
        if not runtime.scheduler.unfinished:
            raise NothingExplored("the program has no task: spawn some with sync.spawn(function)")

    def start(self) -> None:
        """Nobody waits for it."""

    def closing(self) -> Sequence[ProgramTask]:
        """The check at the end, if there is one."""
        check = self._check
        return [] if check is None else [ProgramTask(THE_CHECK, lambda: judge(check))]

    def reports(self) -> Sequence[Report]:
        """Exceptions of tasks, and the rules of `mmu.sync` that were broken."""
        return self._reporter.reports

    def errors(self) -> Sequence[str]:
        """The test's function has no part of the harness in it."""
        return ()

    def outcome(self) -> Hashable:
        """Programs are compared by what they assert."""
        return None

    def _failed(self, task: Task, error: BaseException) -> None:
        self._reporter.emit(report_of(task.name, error))


class FunctionProgram:
    """A test's function as a program that can be run again and again."""

    carrier = THREADS
    """The function, and what it calls, may keep things by thread."""

    def __init__(self, function: ProgramFunction, memory: str = SC) -> None:
        self.memory = memory
        self.name = name_of(function, "program")
        self._function = function

    def build(self, runtime: ControlledRuntime, seed: int) -> FunctionInstance:  # noqa: ARG002 - nothing here is left to chance
        """Call the function."""
        return FunctionInstance(self._function, runtime)


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
