"""An exploration: schedule after schedule of one program under one strategy, and what they add up
to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from attrs import define, evolve, field, frozen

from mmu.report import Report
from stress.engines.program import Executor, Program, Run, Strategy
from stress.engines.stuck import StuckTask
from stress.search import garbage
from stress.search.bounded import Systematic
from stress.search.dpor import Dpor
from stress.search.happens_before import class_of
from stress.search.portfolio import Portfolio, Share
from stress.search.races import races_of
from stress.search.schedule import Schedule, WordNames

ALWAYS_CHECKED: Final = 300
"""So many first classes are all checked for races, after that one in `CHECK_EVERY`; an exhaustive
search checks them all."""
CHECK_EVERY: Final = 8
MOST_CLASSES: Final = 2_000_000


@frozen
class Failure:
    """A failing schedule: what was found first, everything else that was found, the schedule, and
    how soon it was found. `steps` names every step, as (task, operation). `predicted` is a race
    that did no harm in this schedule."""

    report: Report
    others: tuple[Report, ...]
    schedule: Schedule
    steps: tuple[tuple[str, str], ...]
    after_schedules: int
    after_s: float
    strategy: str
    predicted: bool = False

    @property
    def reports(self) -> tuple[Report, ...]:
        """Everything that was found, in order."""
        return (self.report, *self.others)

    def names(self) -> set[str]:
        """The rules and codes of everything that was found."""
        return {name for report in self.reports for name in report.names()}


@define
class ExplorationTally:
    """What an exploration has done so far. `curve` is (schedules, classes) at growing distances;
    `once` how many classes were seen exactly once; `unfinished` how many schedules hit the limit of
    steps; `cut` how many a strategy gave up because they could show nothing new; `states` how many
    states it remembers for that, and `states_full` that it may remember no more; `remaining` the
    estimated number of schedules that an exhaustive search has left. `failures` are kept by the
    signature of the first report that was new."""

    schedules: int = 0
    steps: int = 0
    seconds: float = 0.0
    cut: int = 0
    unfinished: int = 0
    seen: dict[int, int] = field(factory=dict)
    once: int = 0
    curve: list[tuple[int, int]] = field(factory=list)
    failures: dict[str, Failure] = field(factory=dict)
    failing: int = 0
    errors: list[str] = field(factory=list)
    counters: dict[str, int] = field(factory=dict)
    judged: dict[str, int] = field(factory=dict)
    """How often each rule had something to decide."""
    points: set[str] = field(factory=set)
    """The preemption points that were reached."""
    longest: int = 0
    """Steps of the longest schedule."""
    tasks: int = 0
    """Tasks of the one with the most."""
    outcomes: dict[str, int] = field(factory=dict)
    states: int = 0
    states_full: bool = False
    exhausted: bool = False
    remaining: float | None = None
    interrupted: bool = False
    members: dict[str, dict[str, int]] = field(factory=dict)
    _next_point: int = 1

    @property
    def classes(self) -> int:
        """Distinct happens-before classes."""
        return len(self.seen)

    def fired(self) -> set[str]:
        """The rules and codes of everything that was found."""
        return {name for failure in self.failures.values() for name in failure.names()}

    @property
    def unseen_mass(self) -> float:
        """Good-Turing: the probability that the next schedule of the same kind is of a class never
        seen."""
        return self.once / self.schedules if self.schedules else 1.0

    def note_class(self, key: int) -> bool:
        """Count a class; whether it is new."""
        count = self.seen.get(key, 0)
        if count or len(self.seen) < MOST_CLASSES:
            self.seen[key] = count + 1
        self.once += 1 if not count else -1 if count == 1 else 0
        return not count

    def note_point(self) -> None:
        """A point of the saturation curve, at distances that grow."""
        if self.schedules >= self._next_point:
            self.curve.append((self.schedules, self.classes))
            self._next_point = max(self.schedules + 1, self.schedules * 5 // 4)

    def merge(self, other: ExplorationTally, began_s: float = 0.0) -> None:
        """Add what was done elsewhere from `began_s` on; the first of equal failures stays. Its
        number is that of a schedule after all that were here before."""
        for signature, failure in other.failures.items():
            later = evolve(
                failure,
                after_schedules=self.schedules + failure.after_schedules,
                after_s=began_s + failure.after_s,
            )
            self.failures.setdefault(signature, later)
        self.schedules += other.schedules
        self.steps += other.steps
        self.cut += other.cut
        self.unfinished += other.unfinished
        self.failing += other.failing
        for key, count in other.seen.items():
            self.seen[key] = self.seen.get(key, 0) + count
        self.once = sum(1 for count in self.seen.values() if count == 1)
        self.longest = max(self.longest, other.longest)
        self.tasks = max(self.tasks, other.tasks)
        add(self.counters, other.counters)
        add(self.judged, other.judged)
        self.points |= other.points
        add(self.outcomes, other.outcomes)
        self.errors += [error for error in other.errors if error not in self.errors]
        for name, counts in other.members.items():
            known = self.members.setdefault(name, dict.fromkeys(counts, 0))
            add(known, counts)
        self.note_point()


def add(sums: dict[str, int], amounts: Mapping[str, int]) -> None:
    """Add amounts to sums, by name; what is zero leaves no trace."""
    for name, amount in amounts.items():
        if amount:
            sums[name] = sums.get(name, 0) + amount


@frozen
class SearchBudget:
    """How much to do: so many schedules, so many seconds (None: no bound), and whether to stop at
    the first failure; with `wanted`, rules or codes, only at the first that breaks one of them."""

    schedules: int | None = None
    seconds: float | None = None
    stop_at_failure: bool = True
    wanted: frozenset[str] = frozenset()

    def is_met(self, failures: Iterable[Failure]) -> bool:
        """Whether what was found ends the search."""
        if not self.stop_at_failure:
            return False
        return any(not self.wanted or failure.names() & self.wanted for failure in failures)


class Exploration:
    """Runs schedules and keeps the tally; can be continued.

    `seeds(n)` is the seed of the program for schedule n; a program without chance in it always has
    the same.
    """

    def __init__(
        self,
        program: Program,
        strategy: Strategy,
        *,
        limit: int | None = None,
        granularity: str | None = None,
        seeds: Callable[[int], int] = lambda _: 0,
        check_races: bool = True,
        exercised: bool = False,
    ) -> None:
        """`exercised` adds up what the program's instances say of what they did
        (`ScenarioInstance`)."""
        self.strategy = strategy
        self.tally = ExplorationTally()
        self._executor = Executor(program, limit=limit, granularity=granularity)
        self._seeds = seeds
        self._begun = 0
        """Schedules begun so far, whatever the tally."""
        self._told: dict[str, Share] = {}
        """What the members of a portfolio had done when a tally was last finished."""
        self._check_races = check_races
        self._always = MOST_CLASSES if isinstance(strategy, Dpor | Systematic) else ALWAYS_CHECKED
        self._exercised = exercised

    def run(
        self, budget: SearchBudget, on_progress: Callable[[ExplorationTally], None] = lambda _: None
    ) -> ExplorationTally:
        """Go on until the budget is used, the space is exhausted, the harness fails, or a failure
        ends it."""
        try:
            with garbage.by_hand():
                self._search(budget, on_progress)
        finally:  # an interrupt leaves a tally of what was done
            self._complete()
        return self.tally

    def _search(
        self, budget: SearchBudget, on_progress: Callable[[ExplorationTally], None]
    ) -> None:
        tally = self.tally
        start = time.perf_counter()
        before = tally.seconds
        until = tally.schedules + budget.schedules if budget.schedules is not None else None
        next_look = start + 0.2
        while not self.strategy.exhausted:
            self._one()
            now = time.perf_counter()
            tally.seconds = before + now - start
            if tally.errors or (tally.failures and budget.is_met(tally.failures.values())):
                break
            if until is not None and tally.schedules >= until:
                break
            if budget.seconds is not None and now - start >= budget.seconds:
                break
            if now >= next_look:
                next_look = now + 0.2
                self._estimate()
                on_progress(tally)
            garbage.tidy()

    def _complete(self) -> None:
        tally, strategy = self.tally, self.strategy
        tally.exhausted = strategy.exhausted
        if isinstance(strategy, Portfolio):
            self._note_members(strategy.report())
        if isinstance(strategy, Systematic) and strategy.states is not None:
            tally.states, tally.states_full = len(strategy.states), strategy.states.full
        self._estimate()
        tally.curve.append((tally.schedules, tally.classes))

    def _note_members(self, shares: list[Share]) -> None:
        """What the members of a portfolio have added to this tally."""
        for each in shares:
            before = self._told.get(each.name)
            counts = self.tally.members.setdefault(each.name, {"schedules": 0, "classes": 0})
            counts["schedules"] += each.schedules - (before.schedules if before else 0)
            counts["classes"] += each.classes - (before.classes if before else 0)
            self._told[each.name] = each

    def _one(self) -> None:
        tally = self.tally
        seed = self._seeds(self._begun)
        self._begun += 1
        try:
            run = self._executor.execute(self.strategy, seed)
        except StuckTask as error:
            tally.errors.append(str(error))
            return
        tally.schedules += 1
        tally.steps += len(run.trace)
        tally.longest = max(tally.longest, len(run.trace))
        tally.tasks = max(tally.tasks, len(run.names))
        tally.cut += run.cut
        tally.unfinished += run.limit_hit
        self._look_at(run)
        if not run.cut:
            self._learn(run, tally)
        if run.errors and not run.reports and not tally.failures:
            tally.errors += run.errors
        tally.note_point()
        run.release()

    def _look_at(self, run: Run) -> None:
        """Called for every run, also for those that were cut."""

    def _learn(self, run: Run, tally: ExplorationTally) -> None:
        key = hash((run.seed, class_of(run)))
        fresh = tally.note_class(key)
        outcome = str(run.outcome)
        if outcome in tally.outcomes or len(tally.outcomes) < 10_000:
            tally.outcomes[outcome] = tally.outcomes.get(outcome, 0) + 1
        if self._exercised:
            totals = run.instance.totals()
            add(tally.counters, totals)
            add(tally.judged, run.instance.judged(totals))
            tally.points.update(run.instance.points())
        if run.reports:
            tally.failing += 1
            self._keep(run, run.reports, predicted=False)
        elif run.errors or (fresh and self._worth_checking(run)):
            reports = races_of(run)
            if reports:
                tally.failing += 1
                self._keep(run, tuple(reports), predicted=True)

    def _worth_checking(self, run: Run) -> bool:
        """Whether the run is looked at for races that did no harm."""
        many = self.tally.classes > self._always and self.tally.classes % CHECK_EVERY
        return self._check_races and run.completed and not many

    def _keep(self, run: Run, reports: tuple[Report, ...], *, predicted: bool) -> None:
        """A failure that begins as another one did is kept all the same if it goes on to break what
        none has broken so far: what comes first must not hide what is looked for."""
        tally = self.tally
        fired = tally.fired()
        new = (report for report in reports if not report.names() <= fired)
        key = next(new, reports[0]).signature
        if key not in tally.failures:
            tally.failures[key] = Failure(
                reports[0],
                reports[1:],
                Schedule.of(run),
                named_steps(run),
                tally.schedules,
                tally.seconds,
                getattr(self.strategy, "member", self.strategy.name),
                predicted,
            )

    def _estimate(self) -> None:
        share = getattr(self.strategy, "estimate", None)
        if share is not None:
            explored = share()
            self.tally.remaining = (
                self.tally.schedules * (1 - explored) / explored if explored else None
            )


def named_steps(run: Run) -> tuple[tuple[str, str], ...]:
    """Every step of a run as (task, operation)."""
    assert run.scheduler is not None
    names = WordNames(run.scheduler)
    return tuple((run.names[event[0] - 1], names.event(event)) for event in run.trace)
