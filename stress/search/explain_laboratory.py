"""Counterfactuals: what becomes of a schedule without a switch, and with random continuations."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final

from attrs import field, frozen

from mmu.report import Report
from stress.engines.program import Executor, Program, Run, Strategy
from stress.engines.scheduler import Picker, Scheduler
from stress.engines.tasks import ControlledTask
from stress.search.explain_data import NO_FAILURE, SAME_FAILURE, Inevitable, Picture
from stress.search.explain_replay import Recording
from stress.search.races import races_of
from stress.search.random_walk import RandomWalk
from stress.search.schedule import Follow, Schedule


class _Without:
    """The strategy that follows a schedule up to a switch, does not switch but goes on with the
    `staying` task until it blocks or ends, and then takes the other turns in their order; what
    cannot be done of them is left out."""

    name = "without"
    exhausted = False

    def __init__(self, choices: Sequence[int], switch: int, staying: int) -> None:
        self._choices = choices
        self._switch = switch
        self._staying = staying

    def begin(self, scheduler: Scheduler) -> Picker:
        """From the first step on."""
        choices, switch, tasks = self._choices, self._switch, scheduler.tasks
        turns = [
            [number, len(list(group))] for number, group in itertools.groupby(choices[switch:])
        ]
        turns.reverse()
        staying = True

        def can_run(number: int) -> bool:
            return number <= len(tasks) and tasks[number - 1].enabled and not tasks[number - 1].done

        def pick() -> ControlledTask:
            nonlocal staying
            depth = len(scheduler.trace)
            if depth < switch:
                return tasks[choices[depth] - 1]
            if staying and can_run(self._staying):
                return tasks[self._staying - 1]
            staying = False
            while turns:
                turn = turns[-1]
                if turn[1] and can_run(turn[0]):
                    turn[1] -= 1
                    return tasks[turn[0] - 1]
                turns.pop()
            return scheduler.first()

        return pick

    def end(self, run: Run) -> None:
        """Nothing is learnt."""


TRIES: Final = 30
"""Random continuations of a prefix."""


@frozen
class Laboratory:
    """Runs a program in other orders and says whether it still fails in the same way: by the same
    rule and check. (A signature may name a page, which differs from order to order.)"""

    program: Program
    schedule: Schedule
    report: Report
    predicted: bool
    tries: int = field(default=TRIES)

    def without(self, switch: int, task: int) -> str:
        """What comes of the schedule without the switch before step `switch`, away from this
        task."""
        reports = self._reports(_Without(self.schedule.choices, switch, task))
        if not reports:
            return NO_FAILURE
        return SAME_FAILURE if self._is_same(reports) else reports[0].signature

    def fails(self, kept: int, number: int | None = None) -> bool:
        """Whether the first `kept` steps and then random continuation `number` (None: the default
        one) fail in the same way."""
        then = RandomWalk(number).begin if number is not None else None
        return self._is_same(self._reports(Follow(self.schedule.choices, until=kept, then=then)))

    def inevitable(self, last: int) -> Inevitable | None:
        """The earliest step from which on everything fails that is tried, by bisection: it takes
        for granted that what is inevitable stays so, and looks at the steps beside what it found.
        None when not even all of the first `last` steps make it so."""
        if not self._always(last):
            return None
        low, high = 0, last
        while low < high:
            middle = (low + high) // 2
            if self._always(middle):
                high = middle
            else:
                low = middle + 1
            if low == high and high < last and not self._always(high + 1):
                low, high = high + 2, last
        return Inevitable(high - 1, self.tries, self.failing(high - 1) if high else self.tries)

    def failing(self, kept: int) -> int:
        """How many random continuations of the first `kept` steps fail in the same way."""
        return sum(self.fails(kept, number) for number in range(self.tries))

    def pictures(self, after: Sequence[int]) -> tuple[Picture, ...]:
        """The page tables after these steps of the schedule."""
        drawing = Recording(self.program, Follow(self.schedule.choices), after)
        Executor(drawing).execute(drawing, self.schedule.seed)
        return tuple(drawing.pictures)

    def _always(self, kept: int) -> bool:
        return self.fails(kept) and all(self.fails(kept, number) for number in range(self.tries))

    def _is_same(self, reports: Sequence[Report]) -> bool:
        return any(
            report.rule == self.report.rule and report.code == self.report.code
            for report in reports
        )

    def _reports(self, strategy: Strategy) -> tuple[Report, ...]:
        run = Executor(self.program).execute(strategy, self.schedule.seed)
        return run.reports or (tuple(races_of(run)) if self.predicted and run.completed else ())
