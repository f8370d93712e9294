"""A task under control that does not come back: it blocks, or loops, outside of the runtime, where
no scheduler can see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from mmu import stack as stacks
from mmu.runtime import Runtime
from stress.engines.carrier import POOL
from stress.engines.watchdog import StallClock

if TYPE_CHECKING:
    from stress.engines.scheduler import Scheduler

LOOK_S: Final = 1.0
"""How often the main thread looks after the tasks while it waits for its turn."""
STEP_S: Final = 30.0
"""Seconds, of those in which the process was served, that one step may take."""
PHASE_S: Final = 300.0
"""The same for a phase in which steps are not counted, such as taking a VM down."""


class StuckTask(RuntimeError):
    """A task has not come back from a step. It is left where it is."""


def await_turn(scheduler: Scheduler, is_mine: Callable[[], bool]) -> None:
    """For the main thread: wait until it is its turn. Raises `StuckTask` when no task has done a
    step for too long."""
    clock: StallClock | None = None
    while not is_mine():
        if POOL.main.wait_for(LOOK_S):
            continue
        if clock is None:
            limit_s = PHASE_S if scheduler.serial else STEP_S
            clock = StallClock(Runtime(), limit_s, lambda: len(scheduler.trace))
        elif clock.has_stalled():
            raise StuckTask(_text(scheduler))


def _text(scheduler: Scheduler) -> str:
    running = scheduler.running
    lines = [
        f"{running.name} does not come back from a step: it blocks or loops outside of the runtime"
    ]
    if running.task is not None:
        lines += stacks.render(stacks.of_task(running.task))
    return "\n".join(lines)
