"""`stress explore`: an exploration of one scenario, in one process or several, judged, stored and
told."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from attrs import define, evolve, frozen

from stress.engines.carrier import pinned
from stress.engines.scenario_program import ScenarioProgram
from stress.engines.session import variants_of
from stress.observe.points import POINTS
from stress.report import exploration_console
from stress.report.pages import EXPLANATION
from stress.report.publish import publish_exploration
from stress.results import environment
from stress.results.certificate import Certificate
from stress.results.exploration_certificate import certificate_of_exploration
from stress.results.exploration_record import (
    EXPLORE_JSON,
    KIND,
    SCHEMA,
    ExplorationRecord,
    RequestedBudget,
    StoredFailure,
)
from stress.results.exploration_record import as_data as as_plain
from stress.results.inputs import fingerprints
from stress.results.known_kills import KnownKills, known_kills
from stress.results.store import RunDirectory, command_line, now
from stress.results.verdict import Evidence, Judgement, Obligation, Verdict, judge
from stress.runs.fanout.spread import INTERRUPTED, Workers, absolute, spread
from stress.runs.fanout.task import FanoutTask, Trouble, current_slot
from stress.runs.run import expected_of, suspects_of
from stress.scenario.errors import StressError
from stress.scenario.load import unstructure
from stress.scenario.types import Scenario
from stress.scenario.variant_files import variants_from
from stress.search.explain import explain_stored
from stress.search.exploration import Exploration, ExplorationTally, SearchBudget
from stress.search.schedule_file import read, stored
from stress.search.strategies import EVERYTHING, is_exhaustive, strategy_for

EXPLAINED = 2
"""Failing schedules that are explained at once, each with so many random continuations."""
EXPLAINING_TRIES = 3
SHARE = 1000
"""A search that is shared is cut into pieces of so many schedules, or of an eighth of all, ..."""
SMALLEST_SHARE = 50
"""... but of no fewer than so many: every piece is a process and a strategy that begins afresh."""
SHARE_S = 2.5
"""The same in seconds, where seconds bound the search."""
SHARE_LIMIT_S = 3600.0
"""A piece that is bounded by schedules alone and takes longer hangs."""
ENOUGH = 0.99
"""A search has used its seconds when it has used so much of them."""
APART = 1_000_003
"""How far the seeds of two pieces are apart."""
PROGRAMS = 64
"""A scenario that draws its operations is explored with so many schedules of each draw, one draw
after another."""


@frozen
class ExploreRequest:
    """What to explore: the scenario, variants from files, the strategy, and how much. `exhaustive`:
    a search that does not come to its end proves nothing. `jobs` is how many processes may share
    the work, here or with the workers of the Dask `scheduler`; a search that keeps a list of what
    is left cannot be shared, and runs in one."""

    scenario: Scenario
    name: str
    seed: int
    strategy: str
    variant_files: tuple[str, ...] = ()
    schedules: int | None = None
    seconds: float | None = None
    exhaustive: bool = False
    jobs: int = 1
    keep_going: bool = False
    scheduler: str | None = None

    @property
    def processes(self) -> int:
        """How many processes do explore."""
        return 1 if is_exhaustive(self.strategy) else self.jobs


@define
class ExplorationResult:
    """The result: the tally, the verdict, and where it is kept."""

    request: ExploreRequest
    tally: ExplorationTally
    judgement: Judgement
    wall_s: float
    directory: RunDirectory | None = None
    started: str = ""
    selftest: KnownKills | None = None

    @property
    def certificate(self) -> Certificate:
        """What the verdict rests on."""
        request, tally = self.request, self.tally
        asked = [
            f"{request.schedules:,} schedules" if request.schedules else "",
            f"{request.seconds:g} s" if request.seconds else "",
        ]
        wanted = " or ".join(filter(None, asked)) or "everything"
        return certificate_of_exploration(
            request.scenario,
            request.strategy,
            f"{tally.schedules:,} schedules of {tally.steps:,} steps in {self.wall_s:.1f} s; "
            f"{wanted} asked for",
            tally,
            self.judgement.verdict,
            obligations_of(request.scenario, tally),
            self.selftest,
            -(-tally.schedules // PROGRAMS),
        )


def explore(
    request: ExploreRequest, on_progress: Callable[[ExplorationTally], None] = lambda _: None
) -> ExplorationResult:
    """Explore, and judge what came of it."""
    started, start = now(), time.perf_counter()
    if request.processes > 1 or request.scheduler is not None:
        tally = _shared(request, on_progress)
    else:
        with pinned():
            tally = exploration_for(request, request.seed).run(_budget(request), on_progress)
    return ExplorationResult(
        request, tally, judgement_of(request, tally), time.perf_counter() - start, started=started
    )


def exploration_for(request: ExploreRequest, seed: int) -> Exploration:
    """The exploration of one process."""
    scenario = request.scenario
    drawn = not scenario.script
    exhaustive = is_exhaustive(request.strategy)
    base = seed if drawn else 0
    return Exploration(
        ScenarioProgram(request.name, scenario, variants_from(request.variant_files)),
        strategy_for(request.strategy, seed, scenario.explore.states),
        seeds=(lambda number: base + number // PROGRAMS)
        if drawn and not exhaustive
        else (lambda _: base),
        exercised=True,
    )


def _budget(request: ExploreRequest) -> SearchBudget:
    return SearchBudget(
        request.schedules,
        request.seconds,
        not request.keep_going,
        frozenset(expected_of(request.scenario)),
    )


class _Enough(Exception):
    """What was found ends the search: nobody needs what else is running."""


def _shared(
    request: ExploreRequest, on_progress: Callable[[ExplorationTally], None]
) -> ExplorationTally:
    """By several processes, piece by piece, until the budget is used or a failure ends it."""
    total, start, budget = ExplorationTally(), time.perf_counter(), _budget(request)

    def done(_: int, part: ExplorationTally | Trouble) -> None:
        total.seconds = time.perf_counter() - start
        if isinstance(part, Trouble):
            total.errors.append(part.text)
        else:
            total.merge(part, total.seconds - part.seconds)
        on_progress(total)
        if total.errors or budget.is_met(total.failures.values()):
            raise _Enough

    files = (
        absolute(request.variant_files) if request.scheduler is not None else request.variant_files
    )
    pieces = shares(evolve(request, variant_files=files), lambda: time.perf_counter() - start)
    with contextlib.suppress(_Enough):
        why = spread(pieces, Workers(request.jobs, request.scheduler, files), done)
        total.errors += [why] if why and why != INTERRUPTED else []
    total.curve.append((total.schedules, total.classes))
    return total


def shares(request: ExploreRequest, elapsed: Callable[[], float]) -> Iterator[FanoutTask]:
    """The pieces of a search that is shared, made as they are needed; `elapsed` is how many seconds
    it has gone on. What is explored in so many schedules does not depend on who has which piece,
    nor on how many they are."""
    amounts = _by_schedules if request.schedules is not None else _by_seconds
    for number, (schedules, seconds) in enumerate(amounts(request, elapsed)):
        piece = evolve(
            request, seed=request.seed + number * APART, schedules=schedules, seconds=seconds
        )
        yield FanoutTask(explore_share, (piece,), SHARE_LIMIT_S if seconds is None else seconds)


def _by_schedules(
    request: ExploreRequest, elapsed: Callable[[], float]
) -> Iterator[tuple[int | None, float | None]]:
    """Schedules, and at most as many seconds as are left."""
    count = request.schedules or 0
    size = max(SMALLEST_SHARE, min(SHARE, math.ceil(count / 8)))
    for begun in range(0, count, size):
        left = None if request.seconds is None else request.seconds - elapsed()
        if left is not None and left <= 0:
            return
        yield min(size, count - begun), left


def _by_seconds(
    request: ExploreRequest, elapsed: Callable[[], float]
) -> Iterator[tuple[int | None, float | None]]:
    wanted = request.seconds or math.inf
    while (left := wanted - elapsed()) > (1 - ENOUGH) * wanted:
        yield None, min(SHARE_S, left)


def explore_share(piece: ExploreRequest) -> ExplorationTally:
    """In a process of its own: explore one piece."""
    with pinned(current_slot()):
        return exploration_for(piece, piece.seed).run(_budget(piece))


def obligations_of(scenario: Scenario, tally: ExplorationTally) -> tuple[Obligation, ...]:
    """What the scenario demands of all schedules together, beside what was reached."""
    return tuple(
        Obligation(name, needed, tally.counters.get(name, 0))
        for name, needed in scenario.obligations.items()
    )


def judgement_of(request: ExploreRequest, tally: ExplorationTally) -> Judgement:
    """The verdict. A limit that was hit is never a pass."""
    scenario = request.scenario
    obligations = obligations_of(scenario, tally)
    expected = expected_of(scenario)
    finished = tally.schedules - tally.cut - tally.unfinished
    judgement = judge(
        Evidence(
            findings=len(tally.failures),
            harness_errors=tuple(tally.errors),
            obligations=obligations,
            expected_missing=() if tally.fired() & set(expected) else expected,
            completed=_completed(request, tally),
            clean_end=not tally.unfinished or bool(tally.failures),
            quiescent_checks=finished,
        )
    )
    wants_all = request.exhaustive or request.strategy in EVERYTHING
    if wants_all and not tally.exhausted and judgement.verdict <= Verdict.INCONCLUSIVE:
        others = judgement.reasons if judgement.verdict is Verdict.INCONCLUSIVE else ()
        return Judgement(
            Verdict.INCONCLUSIVE,
            ("the search did not come to its end: what it has not seen may be broken", *others),
        )
    return judgement


def _completed(request: ExploreRequest, tally: ExplorationTally) -> bool:
    """Whether the budget was used, or the space exhausted, or a failure ended it."""
    used = request.schedules is not None and tally.schedules >= request.schedules
    timed = request.seconds is not None and tally.seconds >= request.seconds * ENOUGH
    return used or timed or tally.exhausted or bool(tally.failures)


def keep(explored: ExplorationResult, results: Path) -> RunDirectory:
    """Store the result with one file for each failing schedule; returns the directory."""
    request = explored.request
    directory = RunDirectory.create(results, f"explore-{request.name}", request.seed)
    explored.directory = directory
    explored.selftest = known_kills(results, "controlled", request.name, explored.wall_s)
    for number, failure in enumerate(explored.tally.failures.values(), 1):
        schedule = stored(request.name, request.scenario, request.variant_files, failure)
        directory.write_text(schedule_file(number), schedule.to_json())
    _explain(directory, len(explored.tally.failures))
    record = record_of(explored)
    directory.write_text(EXPLORE_JSON, json.dumps(as_plain(record), indent=1) + "\n")
    publish_exploration(directory, record)
    return directory


def _explain(directory: RunDirectory, failures: int) -> None:
    """Say why the first schedules fail, for the page; `stress explain` tries more continuations."""
    for number in range(1, min(failures, EXPLAINED) + 1):
        with contextlib.suppress(StressError):  # one that cannot be explained is shown without
            story = explain_stored(
                read(directory.path / schedule_file(number)), tries=EXPLAINING_TRIES
            )
            directory.write_text(
                EXPLANATION.format(number), json.dumps(story.as_data(), indent=1) + "\n"
            )


def schedule_file(number: int) -> str:
    """The name of the file of a failing schedule, counted from 1."""
    return f"schedule-{number}.json"


def record_of(explored: ExplorationResult) -> ExplorationRecord:
    """The result as it is stored."""
    request, tally, judgement = explored.request, explored.tally, explored.judgement
    scenario = request.scenario
    expected = expected_of(scenario)
    fired = tally.fired()
    return ExplorationRecord(
        schema=SCHEMA,
        kind=KIND,
        id=explored.directory.path.name if explored.directory is not None else "",
        name=request.name,
        verdict=judgement.verdict.name,
        reasons=judgement.reasons,
        strategy=request.strategy,
        seed=request.seed,
        jobs=request.processes,
        asked=RequestedBudget(
            request.schedules, request.seconds, request.exhaustive, request.keep_going, request.jobs
        ),
        command=command_line(),
        started=explored.started,
        variant_files=fingerprints(request.variant_files),
        variants=(*scenario.vm.variants, *(Path(file).stem for file in request.variant_files)),
        expected_rules=expected,
        expected_seen=tuple(name for name in expected if name in fired),
        wall_s=round(explored.wall_s, 3),
        schedules=tally.schedules,
        schedules_per_s=round(tally.schedules / max(explored.wall_s, 1e-9), 1),
        steps=tally.steps,
        steps_per_s=round(tally.steps / max(explored.wall_s, 1e-9)),
        classes=tally.classes,
        unseen_mass=tally.unseen_mass,
        curve=tuple(tally.curve),
        cut=tally.cut,
        unfinished=tally.unfinished,
        states=tally.states,
        states_full=tally.states_full,
        exhausted=tally.exhausted,
        remaining=tally.remaining,
        failing=tally.failing,
        members=tally.members,
        counters=tally.counters,
        judged=tally.judged,
        points=tuple(name for name in POINTS if name in tally.points),
        certificate=explored.certificate,
        failures=tuple(_stored_failures(request, tally)),
        environment=environment.observe(),
        scenario=unstructure(scenario),
        harness_errors=tuple(tally.errors),
    )


def _stored_failures(request: ExploreRequest, tally: ExplorationTally) -> Iterator[StoredFailure]:
    known = [
        variant
        for variant in [*variants_of(request.scenario), *variants_from(request.variant_files)]
        if variant.expects
    ]
    for number, failure in enumerate(tally.failures.values(), 1):
        report = failure.report
        yield StoredFailure(
            signature=report.signature,
            rule=report.rule,
            code=report.code,
            others=tuple(other.signature for other in failure.others),
            headline=report.headline,
            also=tuple(f"{other.rule} {other.headline}" for other in failure.others),
            predicted=failure.predicted,
            schedule=failure.schedule.encode(),
            steps=len(failure.schedule.choices),
            turns=len(failure.schedule.turns()),
            after_schedules=failure.after_schedules,
            after_s=round(failure.after_s, 4),
            strategy=failure.strategy,
            file=schedule_file(number),
            splat=report.render(),
            suspects=suspects_of(report, known),
        )


def as_data(explored: ExplorationResult) -> dict[str, Any]:
    """The result as plain data."""
    return as_plain(record_of(explored))


def lines(explored: ExplorationResult) -> Iterator[str]:
    """The console summary."""
    return exploration_console.lines(
        record_of(explored), explored.directory.path if explored.directory is not None else None
    )


def verdict_line(explored: ExplorationResult) -> str:
    """The verdict in one line."""
    return exploration_console.verdict_line(record_of(explored))
