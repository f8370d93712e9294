"""Explore a program, or replay one schedule of it; whatever is found is raised."""

from __future__ import annotations

import linecache
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from attrs import frozen

from stress.engines.carrier import POOL, pinned
from stress.engines.carrier_choice import MEMORIES, SC
from stress.engines.timed import BlockedOutside
from stress.scenario.errors import StressError
from stress.search.exploration import ExplorationTally, Failure, SearchBudget
from stress.search.schedule import Divergence, Schedule
from stress.search.strategies import EXHAUSTIVE, is_exhaustive, strategy_for
from stress.testing import text
from stress.testing.cause import cause_of
from stress.testing.objects.frames import unsupported
from stress.testing.plain.session import inside
from stress.testing.program import FunctionProgram, NothingExplored, ProgramFunction
from stress.testing.replay import LocatedReplay, place_of_thread, replay_located, simpler
from stress.testing.steady import FunctionExploration, Unsteady

SCHEDULES: Final = 1_000
EXHAUSTIVE_SCHEDULES: Final = 100_000
GRANULARITIES: Final = ("atomic", "library")

UNSTEADY: Final = (
    "run again, the same schedule did not show it: the program depends on more than the order of "
    "its steps (time, chance, sets)"
)

Steps = tuple[tuple[str, str], ...]


class ScheduleFailed(AssertionError):
    """A schedule broke a rule. The message has the finding, a line that replays it and the
    interleaving; `signature` is what the finding is, `schedule` the string, `steps` its (task,
    operation) pairs."""

    def __init__(self, message: str, signature: str, schedule: str, steps: Steps) -> None:
        super().__init__(message)
        self.signature = signature
        self.schedule = schedule
        self.steps = steps


class Inconclusive(StressError):
    """An exhaustive search has met its bound before its end: nothing was found, and nothing was
    proved."""


class TaskBlocked(StressError):
    """A task waits for something that is not under control of the scheduler."""


class ReplayDiverged(StressError):
    """A replay met something else than what was recorded: the test or what it calls has changed."""


MARKS: Final = "+"
"""Before what follows the schedule in a line that replays one."""


@frozen
class Settings:
    """What to explore: `strategy` by name; at most so many `schedules` and `seconds` (None: the
    default, or no bound when the other is given); `exhaustive` demands that every schedule that the
    strategy stands for is run, which is all of them unless it has a bound of its own; `granularity`
    is that of reader-writer locks; `limit` bounds the steps of one schedule. `memory` is "sc"
    (every operation at once and in order) or "tso", x86's order: a task's plain stores wait in a
    buffer, and a release of a lock does, too."""

    strategy: str | None = None
    schedules: int | None = None
    seconds: float | None = None
    exhaustive: bool = False
    granularity: str = "atomic"
    seed: int = 0
    limit: int = 20_000
    memory: str = SC

    def checked(self) -> Settings:
        """The same; raises `StressError` for what makes no sense."""
        strategy_for(self.name, self.seed)
        if self.exhaustive and not is_exhaustive(self.name):
            raise StressError(
                f"strategy {self.name!r} never ends: for exhaustive=True there are "
                f"{', '.join(EXHAUSTIVE)}"
            )
        if self.granularity not in GRANULARITIES:
            raise StressError(
                f"there is no granularity {self.granularity!r}: there are "
                f"{', '.join(GRANULARITIES)}"
            )
        if self.memory not in MEMORIES:
            raise StressError(
                f"there is no memory order {self.memory!r}: there are {', '.join(MEMORIES)}"
            )
        if (self.schedules is not None and self.schedules < 1) or (
            self.seconds is not None and self.seconds <= 0
        ):
            raise NothingExplored(
                f"schedules={self.schedules}, seconds={self.seconds}: that explores nothing"
            )
        return self

    @property
    def name(self) -> str:
        """The strategy's."""
        return self.strategy or ("dpor" if self.exhaustive else "portfolio")

    @property
    def budget(self) -> SearchBudget:
        """The bounds, with defaults."""
        schedules = self.schedules
        if schedules is None and self.seconds is None:
            schedules = EXHAUSTIVE_SCHEDULES if self.exhaustive else SCHEDULES
        return SearchBudget(schedules=schedules, seconds=self.seconds)


@frozen
class Explored:
    """What a clean exploration has covered. `classes` of schedules that differ for any task;
    `exhausted` says that the strategy has run everything it stands for."""

    strategy: str
    schedules: int
    steps: int
    classes: int
    exhausted: bool
    seconds: float
    unfinished: int = 0
    """How many schedules reached the limit of steps."""

    def __str__(self) -> str:
        proved = self.exhausted and not self.unfinished
        end = "all there are" if proved else "not all there are"
        if self.unfinished:
            end += f", {self.unfinished:,} longer than the limit of steps"
        blind = unsupported()
        if blind is not None:
            end += f" (plain objects are not seen on {blind})"
        return f"{self.schedules:,} schedules by {self.strategy}, {self.classes:,} different, {end}"


def explore(
    function: ProgramFunction,
    settings: Settings | None = None,
    *,
    slot: int = 0,
    command: Callable[[str], str] = str,
) -> Explored:
    """Run schedules of the program until one fails, which raises `ScheduleFailed`, or the bounds
    are reached. `slot` says which CPU to stay on; `command(string)` is what a message tells people
    to type to replay a schedule."""
    __tracebackhide__ = True
    settings = (settings or Settings()).checked()
    program = FunctionProgram(function, settings.memory)
    with _under_control(program, slot):
        _survey(program, settings)
        exploration = program.settled(lambda: _explored(program, settings))
        tally = exploration.tally
        failures = list(tally.failures.values())
        failed = _explained(program, failures[0], settings, command) if failures else None
    if failed is not None:
        raise failed
    _checked(exploration, settings)
    return Explored(
        settings.name,
        tally.schedules,
        tally.steps,
        tally.classes,
        tally.exhausted and not tally.unfinished,
        tally.seconds,
        tally.unfinished,
    )


def _survey(program: FunctionProgram, settings: Settings) -> None:
    """See which plain objects are shared in a few schedules, which are always the same."""
    if unsupported() is not None:
        return
    strategies = [strategy_for("dfs", 0), *(strategy_for("random", seed) for seed in range(4))]
    program.settled(
        lambda: program.survey(strategies, limit=settings.limit, granularity=settings.granularity)
    )


def _explored(program: FunctionProgram, settings: Settings) -> FunctionExploration:
    """Run the schedules."""
    exploration = FunctionExploration(
        program,
        strategy_for(settings.name, settings.seed),
        limit=settings.limit,
        granularity=settings.granularity,
    )
    exploration.run(settings.budget)
    return exploration


def _checked(exploration: FunctionExploration, settings: Settings) -> None:
    """Raise what keeps schedules without a failure from meaning anything."""
    tally = exploration.tally
    if not tally.schedules:
        raise NothingExplored("no schedule was run")
    if exploration.unsteady is not None:
        raise Unsteady(exploration.unsteady)
    if tally.unfinished == tally.schedules or (
        settings.exhaustive and (not tally.exhausted or tally.unfinished)
    ):
        raise Inconclusive(_how_far(tally))
    if not exploration.shared:
        raise NothingExplored(
            "no two tasks touched anything that they share, so there was nothing to explore: "
            "everything that is shared must be made by `sync` or by the standard library's "
            "threading and queue"
        )


def replay(
    function: ProgramFunction,
    string: str,
    settings: Settings | None = None,
    *,
    steps: Sequence[tuple[str, str]] = (),
    slot: int = 0,
    command: Callable[[str], str] = str,
) -> Explored:
    """Run one schedule, exactly. Raises `ScheduleFailed` when it fails, and `ReplayDiverged` when
    it cannot be followed; with `steps`, its recorded steps, at the first that is another."""
    __tracebackhide__ = True
    settings = (settings or Settings()).checked()
    choices, _, marks = string.partition(MARKS)
    schedule = Schedule.decode(choices)
    program = FunctionProgram(function, settings.memory)
    program.parts.told = frozenset(marks.split(",") if marks else ())
    with _under_control(program, slot):
        _survey(program, settings)
        replayed = program.settled(
            lambda: replay_located(
                program,
                schedule,
                steps=steps,
                limit=settings.limit,
                granularity=settings.granularity,
            )
        )
    if replayed.divergence is not None:
        raise ReplayDiverged(_diverged(replayed, replayed.divergence))
    if replayed.reports:
        summary = f"replayed: {len(replayed.steps)} steps, the same as recorded"
        message = text.failure(replayed.reports, summary, command(string), _shown(replayed))
        raise ScheduleFailed(message, replayed.reports[0].signature, string, replayed.steps)
    return Explored("replay", 1, len(replayed.steps), 1, False, 0.0)


def _explained(
    program: FunctionProgram, failure: Failure, settings: Settings, command: Callable[[str], str]
) -> ScheduleFailed:
    """The error for a failure: of the simplest schedule that shows it."""
    signature = failure.report.signature
    schedules = "schedule" if failure.after_schedules == 1 else "schedules"
    summary = (
        f"found by {failure.strategy} after {failure.after_schedules:,} {schedules} "
        f"({failure.after_s:.2f} s)"
    )
    better = simpler(program, signature, limit=settings.limit, granularity=settings.granularity)
    schedule = failure.schedule
    if better is not None:
        schedule = better[0]
        summary += f"; shown by a schedule with {_preemptions(better[1])}"
    replayed = replay_located(
        program, schedule, limit=settings.limit, granularity=settings.granularity
    )
    string = _string(schedule, program)
    if replayed.divergence is None and signature in replayed.signatures:
        reports = sorted(replayed.reports, key=lambda report: report.signature != signature)
        return ScheduleFailed(
            text.failure(reports, summary, command(string), _shown(replayed)),
            signature,
            string,
            replayed.steps,
        )
    string = _string(failure.schedule, program)
    message = text.failure(
        failure.reports, f"{summary}\n{UNSTEADY}", command(string), text.Shown(failure.steps)
    )
    return ScheduleFailed(message, signature, string, failure.steps)


def _string(schedule: Schedule, program: FunctionProgram) -> str:
    """The line that replays a schedule: with marks of what was found to be shared late."""
    marks = program.parts.marks()
    return schedule.encode() + (f"{MARKS}{','.join(marks)}" if marks else "")


def _shown(replayed: LocatedReplay) -> text.Shown:
    run = replayed.run
    values = text.values_in(run)
    return text.Shown(
        replayed.steps,
        replayed.places,
        tuple(text.words_at_end(run)),
        text.notes_on(run) | values,
        cause_of(run, values),
    )


def _preemptions(count: int) -> str:
    return (
        "no preemption" if not count else "1 preemption" if count == 1 else f"{count} preemptions"
    )


def _how_far(tally: ExplorationTally) -> str:
    """Why a search that was to be exhaustive proves nothing."""
    if tally.exhausted or tally.unfinished == tally.schedules:
        return (
            f"inconclusive: {tally.unfinished:,} of {tally.schedules:,} schedules were cut off "
            "because they were too long (limit=)"
        )
    left = f", about {tally.remaining:,.0f} are left" if tally.remaining else ""
    return (
        f"inconclusive: {tally.schedules:,} schedules in {tally.seconds:.1f} s did not fail, but "
        f"there are more{left}; "
        "raise schedules= or seconds=, make the program smaller, or bound the search with "
        "strategy='preemption:2'"
    )


def _diverged(replayed: LocatedReplay, divergence: Divergence) -> str:
    head = (
        f"the replay diverges at step {divergence.step + 1}: expected {divergence.expected}, found "
        f"{divergence.found}; "
        "the test, or what it calls, has changed since the schedule was recorded"
    )
    if not replayed.steps:
        return head
    lines = text.interleaving(text.Shown(replayed.steps, replayed.places))
    return "\n".join([head, "", "up to there:", *(f"  {line}" for line in lines)])


_exploring = threading.local()


@contextmanager
def _under_control(program: FunctionProgram, slot: int) -> Iterator[None]:
    """Run schedules of the program in the block, and say of a task that blocks where it does."""
    with _alone(), pinned(slot), program.under_control():
        try:
            yield
        except BlockedOutside as error:
            raise TaskBlocked(_where_blocked(error)) from None


def _where_blocked(error: BlockedOutside) -> str:
    """The line of a task that blocks outside the scheduler's sight."""
    place = place_of_thread(error.task)
    where = f"in {place[0]}, line {place[1]}" if place else "outside the test"
    line = linecache.getline(*place).strip() if place else ""
    return (
        f"{error.task.name} blocks {where}" + (f": {line}" if line else "") + "; what it waits for "
        "is not under control: make it inside the program, from `sync`, threading or queue"
    )


@contextmanager
def _alone() -> Iterator[None]:
    """Schedules run one after another in a process."""
    if getattr(_exploring, "now", False) or inside() is not None:
        raise StressError(
            "explore() was called by a program that is being explored: explore one program after "
            "another"
        )
    with POOL.busy:
        _exploring.now = True
        try:
            yield
        finally:
            _exploring.now = False
