"""An exploration of a test's function that does not trust it: is anything shared, and does the same
schedule always do the same?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from stress.engines.program import Run
from stress.engines.steps import KINDS, OWNER_SHIFT, TASK_LIST, Event
from stress.scenario.errors import StressError
from stress.search.exploration import Exploration
from stress.search.happens_before import GROUP, LOADS, accesses
from stress.search.schedule import Divergence, Follow, Schedule, WordNames, difference_at_end
from stress.search.strategies import EXHAUSTIVE
from stress.testing.program import FunctionProgram

_SERIAL: Final = (1 << OWNER_SHIFT) - 1


class Unsteady(StressError):
    """The same schedule, run again, did something else: the program depends on more than the order
    of its steps."""


class FunctionExploration(Exploration):
    """Runs schedules of a test's function and notes whether tasks `shared` anything, and the first
    step that was `unsteady`."""

    shared = False
    unsteady: str | None = None
    _trace: list[Event] = []  # noqa: RUF012 - never changed, only replaced

    def _look_at(self, run: Run) -> None:
        if isinstance(self._executor.program, FunctionProgram):
            self._executor.program.looked_at()
        if not self.shared:
            self.shared = shares(run)
        if self.unsteady is None:
            self.unsteady = self._difference(run)
            self._trace = run.trace
        if self.unsteady is not None and self.strategy.name.partition(":")[0] in _EXHAUSTIVE:
            raise Unsteady(self.unsteady)

    def _difference(self, run: Run) -> str | None:
        """How the run differs from the one before, or from itself when run again, in a step before
        which both did the same."""
        step = first_difference(self._trace, run.trace)
        if step is not None:
            _, kind, word = self._trace[step]
            return _sentence(
                step, run, f"{KINDS[kind]} {_name(run, word)}".rstrip(), _event(run, step)
            )
        schedules = self.tally.schedules
        if run.cut or schedules & (schedules - 1):
            return None
        schedule = Schedule.of(run)
        follow = Follow(schedule.choices)
        again = self._executor.execute(follow, run.seed)
        try:
            step = first_difference(run.trace, again.trace)
            if step is not None:
                return _sentence(step, run, _event(run, step), _event(again, step))
            return _words(follow.divergence or difference_at_end(again, schedule))
        finally:
            again.release()


_EXHAUSTIVE: Final = {name.partition(":")[0] for name in EXHAUSTIVE}


def first_difference(one: list[Event], other: list[Event]) -> int | None:
    """The first step in which two schedules differ although the same task made it; None if there is
    none before they part."""
    for step, (mine, theirs) in enumerate(zip(one, other, strict=False)):
        if mine != theirs:
            return step if mine[0] == theirs[0] else None
    return None


def shares(run: Run) -> bool:
    """Whether two tasks have touched one word, and not only to read it; their own beginnings and
    ends do not count."""
    touched: dict[int, set[tuple[int, int]]] = {}
    for position, event in enumerate(run.trace):
        for kind, word in accesses(event, run.extras.get(position)):
            if word != TASK_LIST and word & _SERIAL:
                touched.setdefault(word, set()).add((event[0], GROUP[kind]))
    return any(map(_is_shared, touched.values()))


def _is_shared(users: Iterable[tuple[int, int]]) -> bool:
    return len({task for task, _ in users}) > 1 and {group for _, group in users} != {LOADS}


def _event(run: Run, step: int) -> str:
    assert run.scheduler is not None
    return WordNames(run.scheduler).event(run.trace[step])


def _name(run: Run, word: int) -> str:
    """A word's name, if the run has that word."""
    assert run.scheduler is not None
    known: Any = dict(run.scheduler.registry)
    return WordNames(run.scheduler).word(word) if word in known or not word & _SERIAL else "?"


def _sentence(step: int, run: Run, one: str, other: str) -> str:
    name = run.names[run.trace[step][0] - 1]
    return (
        f"step {step + 1}, of {name}, was {one!r} in one run and {other!r} in another, after the "
        f"same steps: {DEPENDS}"
    )


def _words(divergence: Divergence | None) -> str | None:
    if divergence is None:
        return None
    return (
        f"run again with the same schedule, step {divergence.step + 1} was "
        f"{divergence.found!r} and not {divergence.expected!r}: {DEPENDS}"
    )


DEPENDS: Final = (
    "the program depends on more than the order of its steps (random numbers, real time, ids, the "
    "order of sets, or what an earlier run has left behind)"
)
