"""The controlled runtime with time-outs: what programs use whose code the project does not know."""

from __future__ import annotations

from collections.abc import Hashable

from mmu.task import Task
from stress.engines.controlled import STEP_NS, ControlledRuntime
from stress.engines.locks import ControlledLock
from stress.engines.steps import ACQUIRE, LOAD, OWNER_SHIFT
from stress.engines.timed import TimedScheduler


class TimedLock(ControlledLock):
    """A mutual-exclusion lock whose acquisition may time out, and whose state can be waited for."""

    def __init__(self, scheduler: TimedScheduler, name: str, word: int = 0) -> None:
        """`word` is the number of the lock's word, if it has one already."""
        if word:
            self.name, self.pending, self.owner = name, [], None
            self._scheduler, self._word = scheduler, word
        else:
            super().__init__(scheduler, name)
        self.scheduler = scheduler

    def acquire(
        self, blocking: bool = True, timeout: float = -1, *, state: Hashable = None
    ) -> bool:
        """Acquire the lock. With `blocking=False` or a time-out, return whether that succeeded.
        `state` sums up what the caller does, for tasks that poll."""
        if not blocking or timeout < 0:
            return super().acquire(blocking)
        scheduler = self.scheduler
        if not scheduler.pass_in_time(self._word, ACQUIRE, self, self.name, timeout, state):
            return False
        self.owner = scheduler.running
        if self.pending:
            scheduler.gate_changed(self)
        return True


class TimedRuntime(ControlledRuntime):
    """Makes what tasks share on a `TimedScheduler`."""

    lock_class: type[ControlledLock] = TimedLock

    scheduler: TimedScheduler

    def lock_of(self, word: int, name: str) -> TimedLock:
        """A mutual-exclusion lock whose word has a number already, if that is not 0."""
        lock_class = self.lock_class
        assert issubclass(lock_class, TimedLock)
        return lock_class(self.scheduler, name, word)

    def now(self) -> int:
        """The running task's virtual clock in nanoseconds. Every look at it takes a
        microsecond."""
        return self.scheduler.clock(STEP_NS)

    def sleep(self, seconds: float) -> None:
        """Let virtual time pass for the running task."""
        self.scheduler.sleep(seconds)

    def join(self, task: Task, timeout: float | None = None, state: Hashable = None) -> bool:
        """Wait for a task to end, for `timeout` seconds at most, and return whether it has."""
        if timeout is None:
            return super().join(task)
        return self.scheduler.wait_in_time(
            f"{task.name} to end", lambda: self.has_ended(task), timeout, state
        )

    def has_ended(self, task: Task) -> bool:
        """Whether a task has ended."""
        controlled = self.scheduler.tasks[task.number - 1]
        self.scheduler.step(LOAD, controlled.index << OWNER_SHIFT)
        return controlled.done
