"""Probabilistic concurrency testing: the runnable task of the highest random priority runs, and at
depth - 1 random steps it is lowered.

Burckhardt, Kothari, Musuvathi and Nagarakatte, "A Randomized Scheduler with Probabilistic
Guarantees of Finding Bugs" (ASPLOS 2010): a bug of depth d in a program of n tasks and k steps is
found with probability 1 / (n k^(d-1)) or more. That k must be right, so it is learnt; only steps at
which somebody else could have run count, as the others cannot matter.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from stress.engines.program import Run
from stress.engines.scheduler import Picker, Scheduler
from stress.engines.steps import RELAX, YIELD
from stress.engines.tasks import ControlledTask

_NEVER = 1 << 60


class Priorities(dict[ControlledTask, float]):
    """Tasks' priorities; a task that is new gets a random one when it is first asked for."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self._draw = draw

    def __missing__(self, task: ControlledTask) -> float:
        self[task] = value = self._draw()
        return value


class Pct:
    """PCT of one depth, 1 to 5. The first schedule only learns how long schedules are: it has no
    change points."""

    exhausted = False

    def __init__(self, seed: int, depth: int) -> None:
        if not 1 <= depth <= 5:
            raise ValueError(f"a depth of PCT is 1 to 5, not {depth}")
        self.name = f"pct:{depth}"
        self.depth = depth
        self.horizon = 0
        """Over how many contested steps the change points are spread."""
        self._dice = random.Random(seed)
        self._contested: Callable[[], int] = int

    def begin(self, scheduler: Scheduler) -> Picker:
        """Draw priorities and change points afresh."""
        draw = self._dice.random
        # New tasks start in [1, 2); change points lower into [0, 1); what yields goes below that,
        # later ones lower.
        priority = Priorities(lambda: 1 + draw())
        priority_of = priority.__getitem__
        points = self._change_points()
        runnable = scheduler.runnable
        known: list[ControlledTask] = []
        top = scheduler.running  # whoever was picked last, which is who asks
        bottom = 0
        at = left = points.pop()
        cost = 0

        def pick() -> ControlledTask:
            nonlocal left
            if runnable != known or RELAX <= top.kind <= YIELD:
                look_again()
            left -= cost
            return top if left else lower()

        def look_again() -> None:
            nonlocal known, top, bottom, cost
            if RELAX <= top.kind <= YIELD:
                bottom -= 1
                priority[top] = bottom
            known = runnable.copy()
            cost = 1 if len(known) > 1 else 0
            top = max(known, key=priority_of)

        def lower() -> ControlledTask:
            nonlocal top, at, left
            priority[top] = draw()
            top = max(runnable, key=priority_of)
            here, at = at, points.pop()
            left = at - here
            return top

        self._contested = lambda: at - left
        return pick

    def end(self, run: Run) -> None:
        """Learn the length: longer at once, shorter bit by bit, and not from schedules that broke
        off."""
        length = self._contested()
        if length > self.horizon:
            self.horizon = length
        elif run.completed:
            self.horizon -= -((length - self.horizon) // 8)

    def _change_points(self) -> list[int]:
        """Contested steps at which the running task is lowered, the first one last, and before it
        one that never comes."""
        count = min(self.depth - 1, self.horizon)
        drawn = self._dice.sample(range(1, self.horizon + 1), count)
        return [_NEVER, *sorted(drawn, reverse=True)]
