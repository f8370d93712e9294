"""Partial order sampling: every announced operation has a random priority and the highest goes;
what races with it is drawn anew.

Yuan, Yang and Gu, "Partial Order Aware Concurrency Sampling" (CAV 2018). Without the redrawing, an
operation that has lost one race would probably lose the next one as well.
"""

from __future__ import annotations

import random
from typing import Final

from stress.engines.program import Run
from stress.engines.scheduler import Picker, Scheduler
from stress.engines.steps import FREE
from stress.engines.tasks import ControlledTask
from stress.search.happens_before import EXCLUSIVE, GROUP
from stress.search.pct import Priorities

CONFLICTS: Final = tuple(
    tuple(min(one, other) >= 0 and (one == EXCLUSIVE or one != other) for other in GROUP)
    for one in GROUP
)
"""Whether two operations on the same word conflict, by their kinds."""


class Pos:
    """Partial order sampling."""

    name = "pos"
    exhausted = False

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)

    def begin(self, scheduler: Scheduler) -> Picker:
        """Draw afresh."""
        draw = self._dice.random
        priority = Priorities(draw)
        priority_of = priority.__getitem__
        runnable = scheduler.runnable
        tasks = scheduler.tasks

        def pick() -> ControlledTask:
            best = max(runnable, key=priority_of)
            kind = best.kind
            if kind == FREE:  # touches more words than the one that is announced
                priority.clear()
                return best
            word = best.word
            races = CONFLICTS[kind]
            for task in tasks:
                if task.word == word and races[task.kind]:
                    priority[task] = draw()
            priority[best] = draw()  # for what it announces next
            return best

        return pick

    def end(self, run: Run) -> None:
        """Nothing is learnt."""
