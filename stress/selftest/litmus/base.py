"""Litmus programs: what one is, how its outcomes are graded, and how it is built for one schedule.

A program is two or three tasks of a few operations each. What the tasks return is its *outcome*,
and every outcome that can be seen has a grade with an explanation; one that is missing in the table
is ungraded, which is a failure. Broken rules are graded as well: a schedule in which the model
reports one has the report's code as its outcome.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Final

from attrs import field, frozen

from mmu.report import Report, Reporter
from mmu.runtime import Cell, Counter, Queue, RawLock, Table
from mmu.sync import Sync
from mmu.task import Task
from mmu.variant import Variant
from stress.engines.controlled import ControlledRuntime
from stress.engines.program import ProgramTask, QuietProbe
from stress.selftest.litmus.tinyvm import TinyVm

ACCEPTABLE: Final = "acceptable"
INTERESTING: Final = "interesting"
FORBIDDEN: Final = "forbidden"
UNGRADED: Final = "ungraded"

MISSING: Final = "?"
"""What a task has returned that did not come to its end."""


@frozen
class Grade:
    """What an outcome is worth, and why."""

    grade: str
    why: str


def acceptable(why: str) -> Grade:
    """The rule at work."""
    return Grade(ACCEPTABLE, why)


def interesting(why: str) -> Grade:
    """Correct, and worth knowing: not what one would expect."""
    return Grade(INTERESTING, why)


def forbidden(why: str) -> Grade:
    """The rule is broken."""
    return Grade(FORBIDDEN, why)


Body = Callable[[], object]
"""What a task does. What it returns is its part of the outcome; None is none."""


class Tasks:
    """The tasks of one program, named after their functions, and what is looked at when all of them
    have ended."""

    def __init__(self, *bodies: Body, after: Body | None = None) -> None:
        self.bodies = bodies
        self.after = after


class LitmusBench:
    """Makes what the tasks of one program share, for one schedule."""

    def __init__(self, runtime: ControlledRuntime, variants: Sequence[Variant] = ()) -> None:
        self.runtime = runtime
        self.variants = tuple(variants)
        self.reporter = Reporter(sink=None)
        self.errors: list[str] = []
        self.probe = QuietProbe(runtime.scheduler, self._observer_failed)
        self.warm_up: list[Callable[[], object]] = []
        """What every task does before the start: mostly it makes its own records, which is not what
        the rule is about."""
        runtime.on_task_error = self._task_failed

    def cell(self, name: str, value: Any = 0) -> Cell[Any]:
        """A shared word."""
        return self.runtime.cell(name, value)

    def counter(self, name: str, value: int = 0) -> Counter:
        """A shared integer."""
        return self.runtime.counter(name, value)

    def table(self, size: int, name: str) -> Table:
        """Shared integers."""
        return self.runtime.table(size, name)

    def lock(self, name: str) -> RawLock:
        """A lock without lockdep."""
        return self.runtime.lock(name)

    def queue(self, name: str) -> Queue[Any]:
        """A queue between tasks."""
        return self.runtime.queue(name)

    def sync(self) -> Sync:
        """The model's primitives, with their rules."""
        sync = Sync(self.runtime, self.reporter, self.probe)
        self.warm_up.append(lambda: sync.rcu.local.mine)
        return sync

    def vm(self, **config: Any) -> TinyVm:
        """A small VM with the program's variants; see `TinyVm`."""
        vm = TinyVm(self.runtime, self.reporter, self.probe, self.variants, **config)
        self.warm_up.append(vm.warm_up)
        return vm

    def _task_failed(self, task: Task, error: BaseException) -> None:
        self.errors.append(
            f"{task.name} raised {error!r}\n" + "".join(traceback.format_exception(error))
        )

    def _observer_failed(self, hook: str, error: BaseException) -> None:
        self.errors.append(f"an observer raised in {hook}: {error!r}")


@frozen
class Litmus:
    """One program about one rule. `source` says where the rule is from: a section, bug or commit of
    the reference, or a kernel function. `grades` is the table of outcomes. A `broken` program
    leaves the rule out: its forbidden outcome has to be reached, which proves that the search would
    see it."""

    name: str
    family: str
    title: str
    rule: str
    source: str
    build: Callable[[LitmusBench], Tasks]
    grades: Mapping[str, Grade]
    broken: bool = False
    variants: tuple[Variant, ...] = field(default=())

    def grade_of(self, outcome: str) -> Grade:
        """The grade of an outcome; whatever is not in the table is ungraded."""
        return self.grades.get(outcome) or Grade(
            UNGRADED, "nobody has thought of this outcome: the table is wrong, or the model is"
        )


class Family:
    """Programs about one subject; a module has one."""

    def __init__(self, name: str, title: str) -> None:
        self.name = name
        self.title = title
        self.programs: list[Litmus] = []

    def program(
        self,
        name: str,
        *,
        title: str,
        rule: str,
        source: str,
        grades: Mapping[str, Grade],
        broken: bool = False,
        variants: Sequence[Variant] = (),
    ) -> Callable[[Callable[[LitmusBench], Tasks]], Litmus]:
        """Make the decorated function, which builds the tasks, a program of the family."""

        def enlist(build: Callable[[LitmusBench], Tasks]) -> Litmus:
            litmus = Litmus(
                name, self.name, title, rule, source, build, grades, broken, tuple(variants)
            )
            self.programs.append(litmus)
            return litmus

        return enlist


class LitmusProgram:
    """A litmus program for the scheduler, possibly with further variants of the model, and with
    the given memory order."""

    def __init__(
        self, litmus: Litmus, variants: Sequence[Variant] = (), memory: str = "sc"
    ) -> None:
        self.name = litmus.name
        self.memory = memory
        self.litmus = litmus
        self.variants = (*litmus.variants, *variants)

    def build(self, runtime: ControlledRuntime, seed: int) -> LitmusInstance:  # noqa: ARG002 - nothing is left to chance
        """A fresh instance."""
        return LitmusInstance(self.litmus, LitmusBench(runtime, self.variants))


class LitmusInstance:
    """A litmus program for one schedule."""

    has_start = True

    def __init__(self, litmus: Litmus, bench: LitmusBench) -> None:
        self._bench = bench
        self._started: Cell[bool] = bench.runtime.cell("start", False)
        self._tasks = tasks = litmus.build(bench)
        self._seen: list[object] = [MISSING] * (len(tasks.bodies) + 1)
        self.parts: Sequence[ProgramTask] = [
            ProgramTask(body.__name__, self._body(number, body))
            for number, body in enumerate(tasks.bodies)
        ]

    def _body(self, number: int, body: Body) -> Callable[[], None]:
        def run() -> None:
            for prepare in self._bench.warm_up:
                prepare()
            self._bench.runtime.wait_until("the start", lambda: self._started.value)
            self._seen[number] = body()

        return run

    def start(self) -> None:
        """Every task is ready."""
        self._started.store(True)

    def closing(self) -> Sequence[ProgramTask]:
        """What is looked at afterwards."""
        after = self._tasks.after
        if after is None or self._bench.errors:
            self._seen[-1] = None
            return ()
        return [ProgramTask("after", self._body(len(self._tasks.bodies), after))]

    def reports(self) -> Sequence[Report]:
        """The rules that the model saw broken."""
        return self._bench.reporter.reports

    def errors(self) -> Sequence[str]:
        """What went wrong with the program itself."""
        return self._bench.errors

    def outcome(self) -> Hashable:
        """What the tasks have seen, in their order, and what was found afterwards."""
        return ", ".join(str(each) for each in self._seen if each is not None)
