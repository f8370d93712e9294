"""The thread engine: every actor is a real OS thread; they start together, stand still together and
stop together."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable

from attrs import define

from mmu import invariants
from mmu.pulse import Stopwatch
from mmu.runtime import Runtime
from mmu.task import Task
from stress.engines.session import Session
from stress.engines.watchdog import Movement, Watchdog
from stress.observe.resources import Resources

TICK_S = 0.05


@define
class RunOutcome:
    """How a run went, apart from what it found. `completed`: the budget was used, or a finding
    ended it; `clean_end`: every thread came to its end and the VM was destroyed; times in
    seconds."""

    completed: bool = False
    clean_end: bool = False
    interrupted: bool = False
    setup_s: float = 0.0
    run_s: float = 0.0


class ThreadEngine:
    """Runs a session. The main thread only watches: it takes none of the model's locks."""

    def __init__(
        self, session: Session, resources: Resources, on_tick: Callable[[float], None]
    ) -> None:
        self.session = session
        self.runtime: Runtime = session.runtime
        self.resources = resources
        self.outcome = RunOutcome()
        self._on_tick = on_tick
        self._limits = session.scenario.limits
        self._tasks: list[Task] = []
        self._watchdog = Watchdog(session.vm.kvm, self._limits.stall_s)

    def run(self) -> RunOutcome:
        """The whole run: set up, start, watch, stop, check, take down."""
        session = self.session
        self.runtime.on_task_error = self._task_failed
        interval = sys.getswitchinterval()
        sys.setswitchinterval(session.scenario.disturbances.switch_interval_s)
        try:
            self._interruptible(self._first_half)
            if self._tasks:
                self._interruptible(self._finish)
        finally:
            sys.setswitchinterval(interval)
        return self.outcome

    def _first_half(self) -> None:
        if self._in_task("setup", self.session.set_up):
            self._start()
            self._watch()
            self.outcome.completed = True

    def _interruptible(self, part: Callable[[], None]) -> None:
        """Ctrl-C ends this part of the run, and no more: what was found so far is judged and
        kept."""
        try:
            part()
        except KeyboardInterrupt:
            self.outcome.interrupted = True

    def _start(self) -> None:
        session = self.session
        self._tasks = [self.runtime.spawn(actor.name, actor.body) for actor in session.actors]
        flags = session.run_flags
        expected = len(session.actors)
        self._wait(lambda: flags.ready.value >= expected or bool(session.errors()))
        self.outcome.setup_s = session.elapsed()
        flags.started.store(True)

    def _watch(self) -> None:
        """Until the budget is used, enough was found, or the harness failed."""
        session = self.session
        start = time.monotonic()
        stutter = session.scenario.disturbances.stutter_every_s
        next_stutter: float = stutter
        movement: Movement | None = None
        while True:
            time.sleep(TICK_S)
            elapsed = time.monotonic() - start
            self.outcome.run_s = elapsed
            self._look_for_hangs()
            if self.resources.due(elapsed):
                self.resources.sample(elapsed)
            session.gauges.sample()
            self._on_tick(elapsed)
            broken = session.errors() and not session.findings()
            if broken or self._budget_used(elapsed) or self._found_enough():
                return
            if elapsed >= next_stutter:
                movement = movement or Movement(session.actors)
                if movement.by_all():
                    self._stand_still()
                    movement = None
                    next_stutter = time.monotonic() - start + stutter

    def _look_for_hangs(self) -> bool:
        """Report every actor that has stood still for too long; returns whether there was one."""
        reports = self._watchdog.tick(self.session.actors)
        for report in reports:
            self.session.reporter.emit(report)
        return bool(reports)

    def _budget_used(self, elapsed: float) -> bool:
        """Whether the time is up: `duration_s`, or with `until_met` as long as it takes."""
        budget = self.session.scenario.budget
        if elapsed < budget.duration_s:
            return False
        return not budget.until_met or elapsed >= budget.cap_s or not self.session.owes()

    def _found_enough(self) -> bool:
        """Whether there is no point in going on: too much is broken, or some time ago what was
        expected was seen."""
        findings = self.session.findings()
        budget = self.session.scenario.budget
        wanted = [finding for finding in findings if self.session.is_expected(finding)]
        if not wanted:
            return len(findings) >= budget.max_findings
        return (
            len(findings) >= budget.max_findings
            or self.session.elapsed() - wanted[0].at_s >= budget.settle_s
        )

    def _stand_still(self) -> None:
        """Stutter: everybody stops between two steps, the invariants are checked, everybody goes
        on. Every actor has just moved: interrupting a vCPU that hangs would cure it unseen."""
        session, flags = self.session, self.session.run_flags
        parking = sum(1 for actor in session.actors if actor.parks)
        flags.pausing.store(True)
        session.interrupt_vcpus(True)
        session.counts["stutters"].add(1)
        if self._wait(lambda: flags.parked.value >= parking, self._limits.stall_s):
            invariants.check(session.vm)
            session.gauges.at_rest()
            session.counts["standstills"].add(1)
            session.counts["quiescent_checks"].add(1)
        session.interrupt_vcpus(False)
        flags.pausing.store(False)
        self._wait(lambda: flags.parked.value == 0, self._limits.stall_s)

    def _finish(self) -> None:
        """Stop everybody, check the invariants at rest, destroy the VM."""
        session = self.session
        if self.outcome.completed and not (session.findings() or session.errors()):
            self._await_movement()
        session.run_flags.stopping.store(True)
        session.interrupt_vcpus(True)
        watch, patience = (
            Stopwatch(self.runtime),
            self._limits.stall_s if not session.errors() else 1.0,
        )
        for task in self._tasks:
            self._join(task, watch, patience)
        left = [task for task in self._tasks if not self.runtime.join(task, 0)]
        if left and not session.errors():
            for task in left:
                session.reporter.emit(self._watchdog.report(task.name, self._limits.stall_s))
        if left or session.errors():
            return
        if not session.vm.destroyed.value:
            invariants.check(session.vm, invariants.ENDED)
        session.counts["quiescent_checks"].add(1)
        if self._in_task("teardown", session.take_down):
            self.outcome.clean_end = session.vm.destroyed.value

    def _await_movement(self) -> None:
        """Before every vCPU is interrupted: let each actor get somewhere, or report that it
        hangs."""
        movement = Movement(self.session.actors)
        while not (movement.by_all() or self._look_for_hangs()):
            time.sleep(TICK_S)

    def _in_task(self, name: str, body: Callable[[], None]) -> bool:
        """Run `body` in a thread of its own, so that the main thread never blocks in a lock;
        whether it ended well."""
        task = self.runtime.spawn(name, body)
        if not self._join(task, Stopwatch(self.runtime), max(self._limits.stall_s, 30.0)):
            self.session.reporter.emit(self._watchdog.report(name, self._limits.stall_s))
            return False
        return task.error is None

    def _join(self, task: Task, watch: Stopwatch, patience: float) -> bool:
        """Wait until `watch` says that the process was served for `patience` seconds; whether the
        task has ended."""
        while not self.runtime.join(task, max(0.1, patience - watch.seconds())):
            if watch.seconds() >= patience:
                return False
        return True

    def _wait(self, predicate: Callable[[], bool], timeout: float = 60.0) -> bool:
        watch = Stopwatch(self.runtime)
        while not predicate():
            if watch.seconds() > timeout:
                return False
            time.sleep(0.001)
        return True

    def _task_failed(self, task: Task, error: BaseException) -> None:
        """A thread raised: its part is over, so the run is not what was asked for. A finding still
        weighs more."""
        trace = "".join(traceback.format_exception(error))
        self.session.fail(f"task {task} raised {error!r}\n{trace}")
