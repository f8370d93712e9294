"""What a scheduler can run: programs, which are built afresh for every schedule, and the run that
came of one."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, Protocol

from attrs import define, field, frozen

from mmu import stack as stacks
from mmu.probe import ErrorSink, Listener, Probe, override
from mmu.report import Report, Section, section
from mmu.sync.lockdep import describe_held
from mmu.task import Task, current
from stress.engines.carrier_choice import AUTO, SC, carrier_for, runtime_class, scheduler_class
from stress.engines.controlled import ControlledRuntime
from stress.engines.scheduler import Picker, Scheduler
from stress.engines.steps import RELAX, Access, Event, Look, looked_at
from stress.engines.tasks import Abandoned, ControlledTask
from stress.engines.timed import timed

LIMIT = 20_000
"""How many steps a schedule of a program may have that does not say."""
FAIR_STEPS = 50_000
"""How long a schedule that has reached its limit may go on with fair turns before it is called a
livelock."""
DEPTH = 32
"""So many frames of a task that waits are looked at, those of the engine among them."""


@frozen
class ProgramTask:
    """One task of a program: a name that is unique in it, and what it does. Daemons are not waited
    for."""

    name: str
    body: Callable[[], None]
    daemon: bool = False


class Instance(Protocol):
    """One program, ready to run once."""

    parts: Sequence[ProgramTask]
    has_start: bool
    """Whether the parts get ready first, in a fixed order, and then wait for `start`. Otherwise
    everything is explored."""

    def start(self) -> None:
        """Every part waits for the common start: let them go."""
        ...

    def closing(self) -> Sequence[ProgramTask]:
        """Called after the last part has ended: what still has to be done, in a fixed order, before
        the judgement."""
        ...

    def reports(self) -> Sequence[Report]:
        """The broken rules that were seen."""
        ...

    def errors(self) -> Sequence[str]:
        """What went wrong with the harness itself."""
        ...

    def outcome(self) -> Hashable:
        """What the program came to, for comparing schedules."""
        ...


class Program(Protocol):
    """Something that can be run again and again, always from the same start. It may say how its
    schedules are run: `limit`, `granularity`, `memory` and `carrier`, as `Executor` has them, and
    with `timed` that time-outs are virtual and blocked tasks noticed (`stress.engines.timed`)."""

    name: str

    def build(self, runtime: ControlledRuntime, seed: int) -> Instance:
        """A fresh instance, everything shared made by `runtime`; `seed` is all that it may depend
        on."""
        ...


class Strategy(Protocol):
    """Decides who runs next."""

    name: str

    @property
    def exhausted(self) -> bool:
        """Whether every schedule that it would ever try has been run."""
        ...

    def begin(self, scheduler: Scheduler) -> Picker:
        """A schedule is about to begin: what picks the next task, at every step."""
        ...

    def end(self, run: Run) -> None:
        """The schedule is over: learn from it."""
        ...


class Blocked(NamedTuple):
    """What a task that cannot go on has announced: the accesses that could have come sooner, and
    the looks of a wait."""

    task: int
    kind: int
    touched: list[Access]
    looks: list[Look]


@define
class Run:
    """One schedule and what came of it. `trace`, `extras`, `looks`, `follows`, `barriers` and
    `buffers` are the scheduler's, of the explored phase; `cut` says that the strategy gave it up,
    because others like it were seen; `limit_hit` that it was longer than allowed."""

    trace: list[Event] = field(factory=list)
    extras: dict[int, list[Access]] = field(factory=dict)
    looks: dict[int, list[Look]] = field(factory=dict)
    follows: dict[int, int] = field(factory=dict)
    barriers: dict[int, int] = field(factory=dict)
    buffers: dict[int, int] = field(factory=dict)
    names: list[str] = field(factory=list)
    reports: tuple[Report, ...] = ()
    errors: tuple[str, ...] = ()
    outcome: Hashable = None
    blocked: list[Blocked] = field(factory=list)
    """What the tasks that can never go on had announced."""
    cut: bool = False
    limit_hit: bool = False
    completed: bool = False
    key: int | None = None
    """Its happens-before class, once it is known."""
    seed: int = 0
    instance: Any = None
    scheduler: Scheduler | None = None

    def release(self) -> None:
        """Let go of the VM and the scheduler at once; what came of the schedule stays."""
        if self.scheduler is not None:
            self.scheduler.dispose()
        self.instance = self.scheduler = None

    @property
    def failed(self) -> bool:
        """Whether a rule was broken."""
        return bool(self.reports)

    @property
    def signature(self) -> str:
        """What the failure is: the first finding's rule, code and subject."""
        return self.reports[0].signature if self.reports else ""


class Executor:
    """Runs schedules of one program, one at a time: of `limit` steps at most, with rwlocks of this
    `granularity` (see `ControlledRuntime`), and with the memory order that `memory` names (`sc`, or
    `tso` for x86's store buffers); what is not given is as the program says. A schedule
    that comes to the limit gets `fair_steps` more, to end or to be a livelock; with 0 it is given
    up there, and nothing is said of how it would have gone on. `carrier` is what its tasks run on
    (see `stress.engines.carrier_choice`), which nothing but time depends on."""

    def __init__(
        self,
        program: Program,
        *,
        limit: int | None = None,
        granularity: str | None = None,
        memory: str | None = None,
        keep_extras: bool = False,
        fair_steps: int = FAIR_STEPS,
    ) -> None:
        self.program = program
        self.limit: int = limit if limit is not None else getattr(program, "limit", LIMIT)
        self.granularity: str = (
            granularity if granularity is not None else getattr(program, "granularity", "atomic")
        )
        self.memory: str = memory if memory is not None else getattr(program, "memory", SC)
        self.keep_extras = keep_extras
        self.fair_steps = fair_steps
        self.carrier = carrier_for(getattr(program, "carrier", AUTO), self.granularity)
        kind = scheduler_class(self.carrier, self.memory)
        self._is_timed: bool = getattr(program, "timed", False)
        self._scheduler_class = timed(kind) if self._is_timed else kind

    def execute(self, strategy: Strategy, seed: int = 0) -> Run:
        """Build the program, explore one schedule of it with `strategy`, close it and judge."""
        with _fresh_task():
            return self._execute(strategy, seed)

    def _execute(self, strategy: Strategy, seed: int) -> Run:
        scheduler = self._scheduler_class(self.limit, self.fair_steps)
        scheduler.keep_extras = self.keep_extras
        run = Run(seed=seed, scheduler=scheduler)
        found: list[Report] = []
        try:
            run.instance = instance = self._run_parts(scheduler, strategy, run, found)
            # before tasks are unwound: what they break on their way out is no finding
            run.reports = (*instance.reports(), *found)
        finally:
            if any(not task.done for task in scheduler.tasks):
                scheduler.abandon()
        run.names = [task.name for task in scheduler.tasks]
        run.errors = tuple(instance.errors()) or (
            () if run.reports else tuple(scheduler.task_errors)
        )
        run.outcome = instance.outcome() if run.completed else None
        strategy.end(run)
        return run

    def _run_parts(
        self, scheduler: Scheduler, strategy: Strategy, run: Run, found: list[Report]
    ) -> Instance:
        runtime = self._runtime(scheduler)
        instance = self.program.build(runtime, run.seed)
        for part in instance.parts:
            runtime.start(part.name, part.body, daemon=part.daemon)
        scheduler.progress = getattr(instance, "progress", None)
        self._explore(scheduler, instance, strategy, run, found)
        if run.completed:
            try:
                self._close(scheduler, runtime, instance, found)
            except Abandoned:  # the look at the state that was left did not end
                found.append(unending(scheduler, "closing"))
        return instance

    def _runtime(self, scheduler: Scheduler) -> ControlledRuntime:
        return runtime_class(self.memory, self._is_timed)(scheduler, self.granularity)

    def _explore(
        self,
        scheduler: Scheduler,
        instance: Instance,
        strategy: Strategy,
        run: Run,
        found: list[Report],
    ) -> None:
        if instance.has_start:
            scheduler.run()
            if scheduler.unending:
                run.limit_hit = True
                found.append(unending(scheduler, "setup"))
                return
            instance.start()
        scheduler.run(strategy.begin(scheduler))
        run.trace, run.extras, run.looks = scheduler.trace, scheduler.extras, scheduler.looks
        run.follows, run.buffers = scheduler.follows, scheduler.buffers
        run.barriers = scheduler.barriers
        run.blocked = [
            Blocked(task.index, task.kind, _announced(task), task.looks)
            for task in scheduler.waiting
        ]
        run.limit_hit = scheduler.limit_hit
        run.cut = scheduler.given_up
        run.completed = not (scheduler.unfinished or run.cut)
        if scheduler.task_errors:
            return  # a task that has died in the middle of its work lets others wait for ever
        if scheduler.unending:
            found.append(unending(scheduler, "observer"))
        elif run.limit_hit and scheduler.unfinished:
            if not scheduler.moving:
                found.append(livelock(scheduler))
        elif scheduler.stuck:
            found.append(deadlock(scheduler))

    def _close(
        self,
        scheduler: Scheduler,
        runtime: ControlledRuntime,
        instance: Instance,
        found: list[Report],
    ) -> None:
        for part in instance.closing():
            runtime.start(part.name, part.body)
            scheduler.run()
            if scheduler.unfinished and not scheduler.task_errors:
                ended = not scheduler.unending
                found.append(deadlock(scheduler) if ended else unending(scheduler, part.name))
                return


def _announced(task: ControlledTask) -> list[Access]:
    if task.latched:
        return []
    return looked_at(task.looks) or task.reads or [(task.kind, task.word)]


@contextmanager
def _fresh_task() -> Iterator[None]:
    """The calling thread is a new task for a while: what a schedule's program keeps in its task
    goes with the schedule."""
    mine = current.task
    current.task = task = Task(mine.name)
    task.number = mine.number
    try:
        yield
    finally:
        current.task = mine


def waits_for(scheduler: Scheduler) -> list[str]:
    """Who waits for what, and whom; a line each."""
    lines = []
    for task in scheduler.waiting:
        owners = task.gate.owners() if task.gate is not None else []
        names = ", ".join(owner.name for owner in owners if owner is not task)
        waits = (
            "spins until something that it reads changes"
            if task.kind == RELAX
            else f"waits for {task.what}"
        )
        lines.append(f"{task.name} {waits}" + (f", held by {names}" if names else ""))
    return lines


def _where(tasks: Iterable[ControlledTask]) -> Iterator[Section]:
    """Where each task stands, and what it holds."""
    for task in tasks:
        if task.task is not None and not task.daemon:
            here = stacks.of_task(task.task, DEPTH)
            yield section(f"stack of {task.task}", stacks.render(here))
            yield section(
                f"locks held by {task.task}",
                describe_held(task.task, task.what if task.gate is not None else ""),
            )


def deadlock(scheduler: Scheduler) -> Report:
    """Nobody can run, and somebody is not done."""
    lines = waits_for(scheduler)
    spinning = [task for task in scheduler.waiting if task.kind == RELAX and not task.daemon]
    code = "livelock" if spinning else "deadlock"
    waiting = sorted(f"{task.name}: {task.what}" for task in scheduler.waiting if not task.daemon)
    return Report(
        "O10",
        code,
        f"BUG: {code}: {', '.join(task.name for task in scheduler.waiting if not task.daemon)} can "
        "never go on",
        "every task makes progress; here each waits for something that nobody is left to do"
        if not spinning
        else (
            "every task makes progress; here one tries again and again what nobody is left to "
            "change"
        ),
        "khungtaskd; reference O10",
        subject="; ".join(waiting),
        sections=(section("waits for", lines), *_where(scheduler.waiting)),
    )


def livelock(scheduler: Scheduler) -> Report:
    """Everybody got fair turns, and still the end never came."""
    busy = sorted(task.name for task in scheduler.tasks if not task.done and not task.daemon)
    return Report(
        "O10",
        "livelock",
        f"BUG: livelock: {', '.join(busy)} went on for {scheduler.fair_steps:,} steps with fair "
        "turns and did not end",
        "every task makes progress when it gets its turns",
        "reference O10, B38",
        subject=", ".join(busy),
        sections=(
            section("waits for", waits_for(scheduler) or ["nobody waits"]),
            *_where(task for task in scheduler.tasks if not task.done),
        ),
    )


def unending(scheduler: Scheduler, where: str) -> Report:
    """What is not explored went on and on: alone with its task, nothing can end it."""
    busy = [task for task in scheduler.tasks if not task.done and task.enabled]
    return Report(
        "O10",
        "livelock",
        f"BUG: livelock: what is done without interruption ({where}) does not end",
        "every loop ends: no other task is needed for it where none may run",
        "reference O10",
        subject=where,
        sections=tuple(_where(busy)),
    )


class QuietProbe(Probe):
    """A probe whose observers look at the model without being scheduled: what they read belongs to
    the current step."""

    __slots__ = ("_scheduler",)

    def __init__(self, scheduler: Scheduler, on_error: ErrorSink | None = None) -> None:
        super().__init__(on_error)
        self._scheduler = scheduler

    @override
    def _dispatcher(self, name: str, listeners: tuple[Listener, ...]) -> Listener:
        return partial(_tell_quietly, self._scheduler, self._on_error, name, listeners)


def _tell_quietly(
    scheduler: Scheduler,
    on_error: ErrorSink | None,
    name: str,
    listeners: tuple[Listener, ...],
    *args: object,
) -> None:
    scheduler.quiet += 1
    try:
        for listener in listeners:
            listener(*args)
    except Exception as error:
        if on_error is None:
            raise
        on_error(name, error)
    finally:
        scheduler.quiet -= 1
