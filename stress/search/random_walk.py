"""Uniform random walk: at every step each runnable task is as likely as any other."""

from __future__ import annotations

import random

from stress.engines.program import Run
from stress.engines.scheduler import Picker, Scheduler
from stress.engines.tasks import ControlledTask


class RandomWalk:
    """Schedule number n of a seed is always the same."""

    name = "random"
    exhausted = False

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)

    def begin(self, scheduler: Scheduler) -> Picker:
        """Draw afresh."""
        draw = self._dice.random
        runnable = scheduler.runnable

        def pick() -> ControlledTask:
            count = len(runnable)
            return runnable[int(draw() * count)] if count > 1 else runnable[0]

        return pick

    def end(self, run: Run) -> None:
        """Nothing is learnt."""
