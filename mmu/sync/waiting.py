"""A wait that lasts too long is a report: who waits, who holds the lock, where it was taken, what
its holder does now."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from mmu import stack as stacks
from mmu.pulse import Stopwatch
from mmu.runtime import Runtime
from mmu.sync.lockdep import MODES, Hold, LockDep, describe_held
from mmu.task import Task

Part = tuple[str, list[str]]
SHORTEST_S = 0.05


class Patience:
    """A wait for a lock, with a timeout in seconds or none (below 0), of which its thread wants to
    say so when it lasts longer than `limit`. Time in which the process was not served counts for
    the timeout only: nobody could have released the lock."""

    def __init__(self, runtime: Runtime, limit: float, timeout: float) -> None:
        self._runtime = runtime
        self._limit = limit
        self._deadline = runtime.now() + timeout * 1e9 if timeout >= 0 else float("inf")

    @property
    def left(self) -> float:
        """Seconds until the timeout."""
        return max(0.0, (self._deadline - self._runtime.now()) / 1e9)

    def acquire(self, step: Callable[[float], bool]) -> bool:
        """Whether `step(seconds)` has got the lock; if not, the timeout is over, or the limit."""
        watch = Stopwatch(self._runtime)
        while (still := self._limit - watch.seconds()) > 0:
            if step(min(max(still, SHORTEST_S), self.left)):
                return True
            if not self.left:
                return False
        return False


def describe_holder(hold: Hold) -> list[Part]:
    """Sections about who holds a lock: where it was taken, and where its thread is now."""
    task = hold.task
    taken = (f"held by {task} ({MODES[abs(hold.mode)]}), taken at", stacks.render(hold.site))
    if not task.thread.is_alive():
        return [taken, (f"{task} now", ["has ended: nobody is left to release it"])]
    now = (
        f"{task} now" + (f", waiting for {task.waiting_for}" if task.waiting_for else ""),
        stacks.render(stacks.of_task(task)),
    )
    return [taken, now, (f"locks held by {task}, the holder", describe_held(task))]


def report_hung(
    lockdep: LockDep,
    task: Task,
    name: str,
    seconds: float,
    holders: Iterable[Hold],
    others: int = 0,
) -> None:
    """`task` has waited for `seconds`. If the lock was granted to `others` meanwhile, it is not
    stuck but starved."""
    parts = [part for hold in holders for part in describe_holder(hold)]
    if others:
        lockdep.report(
            "starved",
            f"INFO: task {task} starved for more than {seconds:g} seconds, waiting for {name}",
            f"{name} was granted to others {others} times meanwhile: its preference lets them pass "
            "for ever",
            "kernel/locking/rwsem.c (handoff); reference O10",
            subject=name,
            extra=tuple(parts),
            rule="O10",
        )
        return
    lockdep.report(
        "hung-task",
        f"INFO: task {task} blocked for more than {seconds:g} seconds, waiting for {name}",
        "a wait that does not end is a deadlock, a lost wakeup or a section that is too long",
        "kernel/hung_task.c; reference O10",
        subject=name,
        extra=tuple(parts) or (("held by", ["nobody that is known"]),),
        rule="O10",
    )
