"""The thread engine: every actor is a real OS thread; they start together, stand still together and
stop together."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from attrs import define

from mmu import invariants
from mmu.runtime import Runtime
from mmu.task import Task
from stress.engines.session import Session
from stress.engines.watchdog import Movement, StallClock, Watchdog
from stress.observe.resources import Resources

TICK_S = 0.05
JOIN_S = 0.1
"""How often a wait for a thread looks whether anything has moved."""
READY_S = 60.0
"""How long no actor may get ready."""


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
        self.runtime.on_task_error = session.task_failed
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
        if self._in_task("setup", self.session.set_up, self._built):
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
        clock = self._stall_clock(READY_S, lambda: flags.ready.value)
        self._wait(lambda: flags.ready.value >= expected or bool(session.errors()), clock)
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
        clock = self._stall_clock(self._limits.stall_s, lambda: flags.parked.value)
        if self._wait(lambda: flags.parked.value >= parking, clock):
            invariants.check(session.vm)
            session.gauges.at_rest()
            session.counts["standstills"].add(1)
            session.counts["quiescent_checks"].add(1)
        session.interrupt_vcpus(False)
        flags.pausing.store(False)
        clock = self._stall_clock(self._limits.stall_s, lambda: flags.parked.value)
        self._wait(lambda: flags.parked.value == 0, clock)

    def _finish(self) -> None:
        """Stop everybody, check the invariants at rest, destroy the VM."""
        session = self.session
        if self.outcome.completed and not (session.findings() or session.errors()):
            self._await_movement()
        session.run_flags.stopping.store(True)
        session.interrupt_vcpus(True)
        limit = self._limits.stall_s if not session.errors() else 1.0
        clock = self._stall_clock(limit, self._living)
        for task in self._tasks:
            self._join(task, clock)
        left = [task for task in self._tasks if not self.runtime.join(task, 0)]
        if left and not session.errors():
            for task in left:
                session.reporter.emit(self._watchdog.report(task.name, self._limits.stall_s))
        if left or session.errors():
            return
        if not session.vm.destroyed.value:
            invariants.check(session.vm, invariants.ENDED)
        session.counts["quiescent_checks"].add(1)
        if self._in_task("teardown", session.take_down, self._counted):
            self.outcome.clean_end = session.vm.destroyed.value

    def _await_movement(self) -> None:
        """Before every vCPU is interrupted: let each actor get somewhere, or report that it
        hangs."""
        movement = Movement(self.session.actors)
        while not (movement.by_all() or self._look_for_hangs()):
            time.sleep(TICK_S)

    def _in_task(self, name: str, body: Callable[[], None], progress: Callable[[], int]) -> bool:
        """Run `body` in a thread of its own, so that the main thread never blocks in a lock;
        whether it ended well. It hangs when `progress` stands still, not when it takes long."""
        task = self.runtime.spawn(name, body)
        limit = max(self._limits.stall_s, 30.0)
        if not self._join(task, self._stall_clock(limit, progress)):
            self.session.reporter.emit(self._watchdog.report(name, limit))
            return False
        return task.error is None

    def _built(self) -> int:
        """How far setting up is."""
        stage = self.session.stage
        return len(stage.cast) if stage is not None else 0

    def _counted(self) -> int:
        """How much the model has done."""
        return sum(self.session.totals().values())

    def _living(self) -> int:
        """How many actors have not ended."""
        return sum(task.thread.is_alive() for task in self._tasks)

    def _stall_clock(self, limit_s: float, progress: Callable[[], int]) -> StallClock:
        return StallClock(self.runtime, limit_s, progress)

    def _join(self, task: Task, clock: StallClock) -> bool:
        """Wait until the task has ended, or nothing moves any more; whether it has ended."""
        while not self.runtime.join(task, JOIN_S):
            if clock.has_stalled():
                return False
        return True

    def _wait(self, predicate: Callable[[], bool], clock: StallClock) -> bool:
        while not predicate():
            if clock.has_stalled():
                return False
            time.sleep(0.001)
        return True
