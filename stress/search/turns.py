"""A schedule as turns, followed leniently: what is left of a schedule when the program or part of
it is taken away."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from attrs import frozen

from stress.engines.controlled import ControlledRuntime
from stress.engines.program import Executor, Instance, Program, Run, Strategy
from stress.engines.scheduler import Picker, Scheduler
from stress.engines.tasks import ControlledTask


@frozen
class Turn:
    """One task runs for so many steps, or, with None, until it cannot."""

    task: str
    steps: int | None

    def __str__(self) -> str:
        return f"{self.task}:{'*' if self.steps is None else self.steps}"


class FollowTurns:
    """Follows turns as far as they make sense: one of a task that cannot run is passed over; after
    the last the running task goes on while it can, then the first that can. Counts the preemptions
    of what it did: switches away from a task that could have gone on."""

    name = "turns"
    exhausted = False

    def __init__(self, turns: Sequence[Turn]) -> None:
        self._turns = turns
        self.preemptions = 0
        self.ended: list[bool] = []
        """Of every turn of the run, in order: whether it ended because its task could not go on."""

    def begin(self, scheduler: Scheduler) -> Picker:
        """From the first turn on."""
        turns = iter(self._turns)
        self.preemptions = 0
        self.ended = []
        name: str | None = None
        left: int | None = 0
        last: ControlledTask | None = None

        def wanted() -> ControlledTask | None:
            nonlocal name, left
            while True:
                task = next((task for task in scheduler.runnable if task.name == name), None)
                if task is not None and left != 0:
                    left = left - 1 if left is not None else None
                    return task
                turn = next(turns, None)
                if turn is None:
                    return None
                name, left = turn.task, turn.steps

        def pick() -> ControlledTask:
            nonlocal last
            chosen = wanted()
            if chosen is None:
                chosen = scheduler.first()
            if last is not None and last is not chosen:
                could = last.enabled and not last.done
                self.preemptions += could
                self.ended.append(not could)
            last = chosen
            return chosen

        return pick

    def end(self, run: Run) -> None:
        """Nothing is learnt."""


class FindingWatch:
    """A program, and a strategy for it: `failed_at` is after how many steps the first finding was
    there, None if none was before the schedule came to its end."""

    exhausted = False

    def __init__(self, program: Program, inner: Strategy) -> None:
        self.name = program.name
        as_ever = Executor(program)
        self.limit, self.granularity = as_ever.limit, as_ever.granularity
        self.memory = as_ever.memory
        self.failed_at: int | None = None
        self._program = program
        self._inner = inner

    def build(self, runtime: ControlledRuntime, seed: int) -> Instance:
        """The program's own instance."""
        self._instance = instance = self._program.build(runtime, seed)
        return instance

    def begin(self, scheduler: Scheduler) -> Picker:
        """As the strategy says, with a look at the findings before each step."""
        inner, instance = self._inner.begin(scheduler), self._instance

        def pick() -> ControlledTask:
            if self.failed_at is None and instance.reports():
                self.failed_at = len(scheduler.trace)
            return inner()

        return pick

    def end(self, run: Run) -> None:
        """Nothing is learnt."""
        self._inner.end(run)


def turns_of(run: Run, ended: Sequence[bool]) -> list[Turn]:
    """The turns of a run; `ended` as `FollowTurns` has noted it. The fair turns after the step
    limit are none of them: the scheduler takes them by itself, of whatever is followed."""
    groups = (
        (task, len(list(group)))
        for task, group in itertools.groupby(event[0] for event in run.trace)
    )
    over = [*ended, True]
    return [
        Turn(run.names[task - 1], None if until else steps)
        for until, (task, steps) in zip(over, groups, strict=False)
    ]
