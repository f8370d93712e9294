"""The watchdog: a hang becomes a finding (O10) with every thread's stack, held locks and what it
waits for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from mmu import stack as stacks
from mmu.kvm import Kvm
from mmu.pulse import Stopwatch, TwoClocks
from mmu.report import Report, section
from mmu.runtime import Cell
from mmu.sync.lockdep import describe_held, holds_class
from mmu.task import Task


class WatchedTask(Protocol):
    """Of an actor, what the watchdog looks at."""

    name: str
    parks: bool
    done: Cell[bool]

    def moved(self) -> int:
        """Grows whenever the actor gets somewhere."""
        ...


class StallClock:
    """Tells a stall from slow work: `progress` does not change for `limit_s` seconds, of those in
    which the process was served."""

    def __init__(self, clocks: TwoClocks, limit_s: float, progress: Callable[[], int]) -> None:
        self._clocks = clocks
        self._limit_s = limit_s
        self._progress = progress
        self._seen = progress()
        self._since = Stopwatch(clocks)

    def has_stalled(self) -> bool:
        """Look at the progress, and return whether it has stood still for so long."""
        seen = self._progress()
        if seen != self._seen:
            self._seen = seen
            self._since = Stopwatch(self._clocks)
        return self._since.seconds() >= self._limit_s


class Movement:
    """Whether every actor that can stand still has moved, or ended, since this was made."""

    def __init__(self, actors: Sequence[WatchedTask]) -> None:
        self._marks = [(actor, actor.moved()) for actor in actors if actor.parks]

    def by_all(self) -> bool:
        """Whether each of them has."""
        self._marks = [
            (actor, mark)
            for actor, mark in self._marks
            if actor.moved() == mark and not actor.done.value
        ]
        return not self._marks


class Watchdog:
    """Looks at each actor's progress from time to time.

    Only time in which the process was served counts, and of that only when the watchdog itself was:
    on a stopped or overloaded machine nobody makes progress, and that is nobody's fault.
    """

    SERVED_S = 0.5
    """A tick that comes later than this after the one before counts as this much only."""

    def __init__(self, kvm: Kvm, stall_s: float, clock: Callable[[], float] | None = None) -> None:
        self._kvm = kvm
        self._stall_s = stall_s
        self._clock = clock or (lambda: kvm.runtime.served() / 1e9)
        self._last_tick = self._clock()
        self._seen: dict[WatchedTask, tuple[int, float]] = {}

    def tick(self, actors: Sequence[WatchedTask]) -> list[Report]:
        """One look; returns a report for every actor that has stood still for too long."""
        now = self._clock()
        served = min(now - self._last_tick, self.SERVED_S)
        self._last_tick = now
        stuck = []
        for actor in actors:
            progress, still = self._seen.get(actor, (-1, 0.0))
            moved = actor.moved() != progress or actor.done.value or not actor.parks
            still = 0.0 if moved else still + served
            if still > self._stall_s:
                stuck.append(actor)
                still = 0.0
            self._seen[actor] = (actor.moved(), still)
        return [self.report(actor.name, self._stall_s) for actor in stuck]

    def _waits(self, tasks: list[Task]) -> dict[Task, str]:
        """What each task waits for; a reader blocked in mmu_lock says so only in the lock
        itself."""
        waits = {task: task.waiting_for for task in tasks if task.waiting_for}
        for task, mode in self._kvm.mmu_lock.waiters():
            waits[task] = f"{self._kvm.mmu_lock.name} ({mode})"
        return waits

    def report(self, name: str, seconds: float) -> Report:
        """The finding for one stuck actor, with the state of every task."""
        tasks = [task for task in self._kvm.runtime.tasks() if task.thread.is_alive()]
        waits = self._waits(tasks)
        waiting = next((what for task, what in waits.items() if task.name == name), "")
        parts = [section("waits for", _waits_for(tasks, waits) or ["nobody waits"])]
        for task in tasks:
            parts.append(section(f"stack of {task}", stacks.render(stacks.of_task(task))))
            parts.append(section(f"locks held by {task}", describe_held(task, waits.get(task, ""))))
        return Report(
            "O10",
            "hung-task",
            f"INFO: task {name} blocked for more than {seconds:g} seconds"
            + (f", waiting for {waiting}" if waiting else ""),
            "every actor makes progress; a wait that does not end is a deadlock, a lost wakeup or "
            "an unbounded retry",
            "khungtaskd; reference O10",
            name,
            name,
            tuple(parts),
        )


def _waits_for(tasks: list[Task], waits: dict[Task, str]) -> list[str]:
    """One line a waiting task: what it waits for, who holds that, and what those wait for in
    turn."""
    lines = []
    for task, what in waits.items():
        holders = [
            other
            for other in tasks
            if other is not task and holds_class(other, what.split(" (")[0], waits.get(other, ""))
        ]
        owners = ", ".join(
            f"{other}" + (f" (which waits for {waits[other]})" if other in waits else "")
            for other in holders
        )
        lines.append(f"{task} -> {what}" + (f", held by {owners}" if owners else ""))
    return lines
