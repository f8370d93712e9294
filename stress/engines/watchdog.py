"""The watchdog: a hang becomes a finding (O10) with every thread's stack, held locks and what it waits for."""

from __future__ import annotations

import time

from mmu import stack as stacks
from mmu.report import Report, section
from mmu.runtime import Runtime
from mmu.sync.lockdep import describe_held
from mmu.task import Task
from stress.actors.base import Actor


class Watchdog:
    """Looks at each actor's progress from time to time.

    Only time during which the watchdog itself was served counts: on a stopped or overloaded machine nobody makes
    progress, and that is nobody's fault.
    """

    SERVED_S = 0.5
    """A tick that comes later than this after the one before counts as this much only."""

    def __init__(self, runtime: Runtime, stall_s: float) -> None:
        self._runtime = runtime
        self._stall_s = stall_s
        self._last_tick = time.monotonic()
        self._seen: dict[Actor, tuple[int, float]] = {}

    def tick(self, actors: list[Actor]) -> list[Report]:
        """One look; returns a report for every actor that has stood still for too long."""
        now = time.monotonic()
        served = min(now - self._last_tick, self.SERVED_S)
        self._last_tick = now
        stuck = []
        for actor in actors:
            progress, still = self._seen.get(actor, (-1, 0.0))
            moved = actor.progress != progress or actor.done or not actor.parks
            still = 0.0 if moved else still + served
            if still > self._stall_s:
                stuck.append(actor)
                still = 0.0
            self._seen[actor] = (actor.progress, still)
        return [self.report(actor.name, self._stall_s) for actor in stuck]

    def report(self, name: str, seconds: float) -> Report:
        """The finding for one stuck actor, with the state of every task."""
        tasks = [task for task in self._runtime.tasks() if _alive(task)]
        culprit = next((task for task in tasks if task.name == name), None)
        waiting = culprit.waiting_for if culprit is not None else ""
        parts = [section("waits for", [f"{task}: {task.waiting_for}" for task in tasks if task.waiting_for] or ["nobody waits"])]
        for task in tasks:
            parts.append(section(f"stack of {task}", stacks.render(stacks.of_thread(task.ident))))
            parts.append(section(f"locks held by {task}", describe_held(task)))
        return Report(
            "O10",
            "hung-task",
            f"INFO: task {name} blocked for more than {seconds:g} seconds" + (f", waiting for {waiting}" if waiting else ""),
            "every actor makes progress; a wait that does not end is a deadlock, a lost wakeup or an unbounded retry",
            "khungtaskd; reference O10",
            name,
            name.rstrip("0123456789"),
            tuple(parts),
        )


def _alive(task: Task) -> bool:
    return task.thread is not None and task.thread.is_alive()
