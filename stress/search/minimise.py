"""Minimise: the smallest program and the fewest context switches that still show a failure.

A result is smaller by shortlex: fewer operations, then less of everything else in the scenario,
then fewer preemptions, turns and steps. It fails with the same signature, and it is 1-minimal: with
any one operation, part or turn less, the same search does not find the failure any more. Every
search is bounded by numbers of schedules, not by time, so the result of a failure is always the
same. What fails and then goes on for ever is not waited for: what is tried gets a few times the
steps after which the failure was there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from attrs import define, evolve, field, frozen

from mmu.report import Report
from mmu.variant import Variant
from stress.actors import performed
from stress.engines.program import Executor, Run, Strategy
from stress.engines.scenario_program import ScenarioInstance, ScenarioProgram
from stress.scenario.load import structure, unstructure
from stress.scenario.scripts import SETUP
from stress.scenario.types import Count, Flag, Lines, Positive, Scenario
from stress.search.bounded import PreemptionBounded
from stress.search.exploration import Failure, named_steps
from stress.search.happens_before import class_of
from stress.search.pct import Pct
from stress.search.portfolio import Portfolio
from stress.search.races import races_of
from stress.search.random_walk import RandomWalk
from stress.search.schedule import Follow, Schedule, ScheduleError
from stress.search.turns import FindingWatch, FollowTurns, Turn, turns_of

Searches = tuple[tuple[Callable[[], Strategy], int], ...]

SEARCHES: Final[Searches] = (
    (lambda: PreemptionBounded(1), 40),
    (lambda: Pct(1, 2), 30),
    (lambda: RandomWalk(2), 20),
    (lambda: Pct(3, 3), 20),
)
"""How a smaller program is searched for the failure when the schedule at hand does not fit it:
strategies and schedules."""
SHORT: Final = SEARCHES[2:3]
"""The same for a long program, to begin with: what goes easily goes first, for a search in vain
costs most there."""
WRITTEN_DOWN: Final = 1_000
"""How many more schedules are tried for what actors have drawn, once it is written down: it is done
only once."""
FEWER_PREEMPTIONS: Final = 500
"""How many schedules with at most one preemption are tried for a schedule that is simpler
altogether."""
SIMPLER: Final = 500
"""How many schedules are tried where only the schedule is made simpler."""
LEAST_STEPS: Final = 1_000
MORE_STEPS: Final = 3
"""A smaller program may take so many times the steps after which the failure was there, but at
least `LEAST_STEPS`: one that has come no farther by then is another failure, or none."""


@frozen
class Candidate:
    """A program and a schedule of it that fails."""

    scenario: Scenario
    turns: tuple[Turn, ...]
    preemptions: int
    run: Run
    reports: tuple[Report, ...]

    @property
    def key(self) -> tuple[int, int, int, int, int]:
        """What is compared: operations, size of the rest, preemptions, turns, steps."""
        return (
            operations(self.scenario),
            size(self.scenario),
            self.preemptions,
            len(self.turns),
            len(self.run.trace),
        )


@define
class Minimised:
    """The result, with how many schedules it took; `before` and `after` are keys."""

    scenario: Scenario
    failure: Failure
    turns: tuple[Turn, ...]
    before: tuple[int, int, int, int, int]
    after: tuple[int, int, int, int, int]
    schedules: int = 0
    removed: list[str] = field(factory=list)


def operations(scenario: Scenario) -> int:
    """How many operations its script has, those before the start included."""
    return sum(len(lines) for lines in scenario.script.values())


def size(scenario: Scenario) -> int:
    """A number for everything else: tasks, pages, levels, frames."""
    vm, memory, actors = scenario.vm, scenario.memory, scenario.actors
    exported = actors.consumer.devices + actors.exporter.threads if vm.have_exported_tdp else 0
    tasks = (
        vm.vcpus
        + exported
        + actors.host.threads
        + actors.dirty_log.enabled
        + actors.nx.enabled
        + actors.memslot_worker.enabled
    )
    pages = (
        memory.fixed_pages
        + memory.churn_slots * memory.churn_pages
        + memory.smm_pages
        + memory.smm_churn_pages
    )
    return 1000 * tasks + 100 * vm.levels + 10 * pages + vm.entries + vm.frames // 8


class Minimiser:
    """Makes one failure smaller. `schedules` counts what was run for it."""

    def __init__(
        self,
        name: str,
        variants: Sequence[Variant],
        signature: str,
        *,
        seed: int = 0,
        predicted: bool = False,
        first: bool = True,
    ) -> None:
        """The failure is known by its first report; with `first` false, by the report of this
        signature wherever it comes."""
        self.name = name
        self.signature = signature
        self.schedules = 0
        self.removed: list[str] = []
        self._variants = tuple(variants)
        self._seed = seed
        self._predicted = predicted
        self._first = first
        self._most = math.inf
        """So many schedules may be tried altogether to make the schedule simpler."""
        self._limit: int | None = None
        """What is tried is given up after so many steps; None: every schedule gets what it always
        gets."""
        self._position = 0
        """Where in the list of what could go the last thing went: the next is looked for from there
        on."""

    def minimise(self, scenario: Scenario, schedule: Schedule) -> Minimised | None:
        """The smallest that is found; None when the schedule does not show the failure. Raises
        `ScheduleError` when what its actors drew does not show it any more once it is written
        down."""
        best = self._adopt(scenario, schedule)
        if best is None:
            return None
        before = (*best.key[:4], len(schedule.choices)) if best.run.limit_hit else best.key
        if len(best.run.trace) <= LEAST_STEPS:
            best = self._simpler_schedule(best)
        program = self._smaller_program(best)
        while True:
            best = self._fewer_turns(self._simpler_schedule(program))
            program = self._smaller_program(best)
            if program is best:
                break
        return self._minimised(best, before)

    def simplify(self, scenario: Scenario, schedule: Schedule) -> Minimised | None:
        """Only the schedule made simpler, by fewer turns, which is soon done: the program stays,
        with all its operations. Returns and raises what `minimise` does."""
        best = self._adopt(scenario, schedule)
        if best is None:
            return None
        self._most = self.schedules + SIMPLER
        return self._minimised(self._fewer_turns(best), best.key)

    def _minimised(self, best: Candidate, before: tuple[int, int, int, int, int]) -> Minimised:
        best = self._in_full(best)
        return Minimised(
            best.scenario,
            self._failure(best),
            best.turns,
            before,
            best.key,
            self.schedules,
            self.removed,
        )

    # Finding the failure.

    def _executor(self, scenario: Scenario, *, in_full: bool = False) -> Executor:
        program = ScenarioProgram(self.name, scenario, self._variants)
        return (
            Executor(program)
            if in_full or self._limit is None
            else Executor(program, limit=self._limit, fair_steps=0)
        )

    def _adopt(self, scenario: Scenario, schedule: Schedule) -> Candidate | None:
        """The failure as it was found; a scenario whose actors draw what they do becomes one with a
        script."""
        self._seed = schedule.seed
        program = ScenarioProgram(
            self.name, scenario, self._variants, record_ops=not scenario.script
        )
        watched = FindingWatch(program, Follow(schedule.choices))
        run = Executor(watched).execute(watched, schedule.seed)
        self.schedules += 1
        if not self._fails(run):
            return None
        self._limit = _limit(watched.limit, run, watched.failed_at)
        if scenario.script:
            return self._follow(scenario, _turns(run, schedule))
        instance: ScenarioInstance = run.instance
        assert instance.world.stage is not None
        parts = {
            name: Lines(tuple(map(str, ops)))
            for name, ops in performed(instance.world.stage).items()
            if ops
        }
        scripted = evolve(
            scenario,
            script={
                **parts,
                **({SETUP: scenario.script[SETUP]} if SETUP in scenario.script else {}),
            },
        )
        found = self._find(scripted, _turns(run, schedule)) or self._search(
            self._executor(scripted), scripted, Portfolio(1, classify=class_of), WRITTEN_DOWN
        )
        if found is None:
            raise ScheduleError(
                f"{self.name}: the schedule fails as recorded, but what its actors drew, written "
                "down as a [script], did not in "
                f"{self.schedules - 1:,} schedules, so it cannot be made smaller; explain it as it "
                "is, or explore a scenario with a script"
            )
        return found

    def _in_full(self, best: Candidate) -> Candidate:
        """The candidate with all the steps that a replay takes: what was there before it was given
        up is there in all of them."""
        if self._limit is None or not best.run.limit_hit:
            return best
        found = self._follow(best.scenario, best.turns, in_full=True)
        assert found is not None
        return found

    def _fails(self, run: Run) -> tuple[Report, ...]:
        """The reports of a run that shows the failure, the one that it is known by first; none of
        another run."""
        reports = run.reports
        if not reports and self._predicted and run.completed:
            reports = tuple(races_of(run))
        if self._first:
            return reports if reports and reports[0].signature == self.signature else ()
        wanted = [report for report in reports if report.signature == self.signature]
        return (*wanted, *(report for report in reports if report not in wanted)) if wanted else ()

    def _follow(
        self, scenario: Scenario, turns: Sequence[Turn], *, in_full: bool = False
    ) -> Candidate | None:
        follow = FollowTurns(turns)
        run = self._executor(scenario, in_full=in_full).execute(follow, self._seed)
        self.schedules += 1
        reports = self._fails(run)
        if not reports:
            run.release()
            return None
        return Candidate(
            scenario, tuple(turns_of(run, follow.ended)), follow.preemptions, run, reports
        )

    def _find(
        self, scenario: Scenario, turns: Sequence[Turn], searches: Searches = SEARCHES
    ) -> Candidate | None:
        """The failure in another program: by the same turns, else by a short search."""
        found = self._follow(scenario, turns)
        if found is not None:
            return found
        executor = self._executor(scenario)
        for make, schedules in searches:
            found = self._search(executor, scenario, make(), schedules)
            if found is not None:
                return found
        return None

    def _search(
        self, executor: Executor, scenario: Scenario, strategy: Strategy, schedules: int
    ) -> Candidate | None:
        for _ in range(schedules):
            if strategy.exhausted:
                return None
            run = executor.execute(strategy, self._seed)
            self.schedules += 1
            if run.errors and not run.reports:
                return None
            failed = self._fails(run)
            run.release()
            if failed:
                return self._follow(scenario, _turns(run, Schedule.of(run)))
        return None

    # Making it smaller.

    def _smaller_program(self, best: Candidate) -> Candidate:
        """Leave out one thing after another, as long as the failure stays; until nothing can go any
        more."""
        if len(best.run.trace) > LEAST_STEPS:
            best = self._one_less(best, SHORT)
        return self._one_less(best, SEARCHES)

    def _one_less(self, best: Candidate, searches: Searches) -> Candidate:
        kept = 0
        while True:
            candidates = list(smaller_scenarios(best.scenario))
            if kept >= len(candidates):
                return best
            what, scenario = candidates[self._position % len(candidates)]
            found = self._find(scenario, best.turns, searches)
            if found is None:
                kept += 1
                self._position += 1
            else:
                self.removed.append(what)
                self._position %= len(candidates)
                best, kept = found, 0

    def _simpler_schedule(self, best: Candidate) -> Candidate:
        """A schedule of the same program with at most one preemption, if there is one."""
        if best.preemptions <= 1:
            return best
        found = self._search(
            self._executor(best.scenario), best.scenario, PreemptionBounded(1), FEWER_PREEMPTIONS
        )
        return found if found is not None and found.key < best.key else best

    def _fewer_turns(self, best: Candidate) -> Candidate:
        """Leave out turns, or let one run on, as long as the failure stays and the schedule gets
        simpler: many at a time first, at last one by one until nothing can go any more."""
        best = self._gathered(best)
        size = len(best.turns) // 4
        while size > 1:
            best = self._without(best, size)
            size //= 2
        while (simpler := self._without(best, 1)) is not best:
            best = simpler
        return best

    def _gathered(self, best: Candidate) -> Candidate:
        """Half of the turns, a quarter and so on gathered by task, where the failure does not mind:
        most of a random schedule has nothing to do with it."""
        size = len(best.turns) // 2
        while size > 1:
            start = 0
            while start < len(best.turns):
                turns = [
                    *best.turns[:start],
                    *_by_task(best.turns[start : start + size]),
                    *best.turns[start + size :],
                ]
                found = self._follow(best.scenario, turns) if len(turns) < len(best.turns) else None
                if found is not None and found.key < best.key:
                    best = found
                start += size
            size //= 2
        return best

    def _without(self, best: Candidate, size: int) -> Candidate:
        """Leave out so many turns in a row wherever that can be, from the last turn to the
        first."""
        end = len(best.turns)
        while end > 0 and self.schedules < self._most:
            for turns in _fewer(best.turns, end, size):
                found = self._follow(best.scenario, turns)
                if found is not None and found.key < best.key:
                    best = found
                    break
            else:
                end -= size
            end = min(end, len(best.turns))
        return best

    def _failure(self, best: Candidate) -> Failure:
        steps = named_steps(best.run)
        return Failure(
            best.reports[0],
            best.reports[1:],
            Schedule.of(best.run),
            steps,
            self.schedules,
            0.0,
            "minimise",
            not best.run.reports,
        )


def _limit(limit: int, run: Run, failed_at: int | None) -> int | None:
    """How many steps of smaller programs are tried, when this run, of a program with such a limit,
    has failed after that many. One that failed only in its fair turns, or because of them, needs
    all the steps that there are."""
    if not run.limit_hit:
        failed_at = len(run.trace)
    if failed_at is None or failed_at >= limit:
        return None
    return min(limit, max(LEAST_STEPS, MORE_STEPS * failed_at))


def _turns(run: Run, schedule: Schedule) -> list[Turn]:
    """The turns of a schedule by the names of the run's tasks."""
    return [Turn(run.names[task - 1], steps) for task, steps in schedule.turns()]


def _by_task(turns: Sequence[Turn]) -> Iterator[Turn]:
    """One turn for each task, in the order of their first ones."""
    for task in dict.fromkeys(turn.task for turn in turns):
        steps = [turn.steps for turn in turns if turn.task == task]
        yield Turn(task, None if None in steps else sum(step or 0 for step in steps))


def _fewer(turns: Sequence[Turn], end: int, size: int) -> Iterator[list[Turn]]:
    """The turns without the last `size` of the first `end`; where that is one, also with that one
    not interrupted, with its steps left to the task's next turn, and with the next turn's steps
    taken at once."""
    start = max(0, end - size)
    before, turn, after = turns[:start], turns[start], turns[end:]
    yield [*before, *after]
    if size > 1 or turn.steps is None:
        return
    yield [*before, Turn(turn.task, None), *after]
    following = next((place for place, other in enumerate(after) if other.task == turn.task), None)
    if following is not None:
        more = after[following].steps
        both = Turn(turn.task, None if more is None else turn.steps + more)
        yield [*before, *after[:following], both, *after[following + 1 :]]
        yield [*before, both, *after[:following], *after[following + 1 :]]


def smaller_scenarios(scenario: Scenario) -> Iterator[tuple[str, Scenario]]:
    """Every scenario that is smaller by one thing: an actor's part, an operation, a device, some
    memory."""
    for name, lines in scenario.script.items():
        others = {key: value for key, value in scenario.script.items() if key != name}
        if len(lines) > 1 and others:
            yield from _valid(f"all of {name}", evolve(scenario, script=others))
    for name, lines in scenario.script.items():
        for number, line in enumerate(lines):
            rest = Lines((*lines[:number], *lines[number + 1 :]))
            script = {
                key: rest if key == name else value
                for key, value in scenario.script.items()
                if key != name or rest
            }
            if script:
                yield from _valid(f"{name}: {line}", evolve(scenario, script=script))
    for what, smaller in (*_fewer_tasks(scenario), *_less_memory(scenario)):
        yield from _valid(what, smaller)


def _fewer_tasks(scenario: Scenario) -> Iterator[tuple[str, Scenario]]:
    vm, actors = scenario.vm, scenario.actors
    if vm.vcpus > 1:
        yield "a vCPU", evolve(scenario, vm=evolve(vm, vcpus=Positive(vm.vcpus - 1)))
    if actors.consumer.devices:
        devices = evolve(actors.consumer, devices=Count(actors.consumer.devices - 1))
        yield "a device", evolve(scenario, actors=evolve(actors, consumer=devices))
    if actors.consumer.engines:
        consumer = evolve(actors.consumer, engines=Flag(False))
        yield "the DMA engines", evolve(scenario, actors=evolve(actors, consumer=consumer))
    if actors.exporter.threads:
        threads = evolve(actors.exporter, threads=Count(actors.exporter.threads - 1))
        yield "an exporter", evolve(scenario, actors=evolve(actors, exporter=threads))
    if actors.host.threads:
        yield (
            "a host thread",
            evolve(
                scenario,
                actors=evolve(
                    actors, host=evolve(actors.host, threads=Count(actors.host.threads - 1))
                ),
            ),
        )


def _less_memory(scenario: Scenario) -> Iterator[tuple[str, Scenario]]:
    vm, memory = scenario.vm, scenario.memory
    if vm.levels > 2:
        yield (
            "a level of the page table",
            evolve(scenario, vm=evolve(vm, levels=Positive(vm.levels - 1))),
        )
    if memory.churn_slots:
        yield (
            "a churning slot",
            evolve(scenario, memory=evolve(memory, churn_slots=Count(memory.churn_slots - 1))),
        )
    if memory.fixed_pages > 1:
        yield (
            "half of the fixed slot",
            evolve(scenario, memory=evolve(memory, fixed_pages=Positive(memory.fixed_pages // 2))),
        )
    if memory.churn_pages > 1:
        yield (
            "half of each churning slot",
            evolve(scenario, memory=evolve(memory, churn_pages=Positive(memory.churn_pages // 2))),
        )
    if memory.smm_pages or memory.smm_churn_pages:
        yield (
            "SMM memory",
            evolve(scenario, memory=evolve(memory, smm_pages=Count(0), smm_churn_pages=Count(0))),
        )
    if vm.frames > 16:
        yield (
            "half of the frames",
            evolve(scenario, vm=evolve(vm, frames=Positive(max(16, vm.frames // 2)))),
        )


def _valid(what: str, scenario: Scenario) -> Iterator[tuple[str, Scenario]]:
    """The scenario, if it is one: a script may name what is not there any more."""
    plain = unstructure(scenario)
    plain.pop("seed")
    plain["vm"].pop("variant_files")
    checked, problems = structure(plain, {}, "")
    if checked is not None and not problems:
        yield what, scenario
