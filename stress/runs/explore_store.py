"""What is stored of an exploration, and where: its record, the failing schedules, explanations of
the first ones, and the reports."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from stress.engines.session import suspects_of, variants_of
from stress.observe.points import POINTS
from stress.report.publish import publish_exploration
from stress.results import environment
from stress.results.certificate import Certificate
from stress.results.exploration_certificate import certificate_of_exploration
from stress.results.exploration_record import (
    EXPLORATION_FORMAT,
    EXPLORE_JSON,
    ExplorationRecord,
    RequestedBudget,
    StoredFailure,
)
from stress.results.inputs import fingerprints
from stress.results.known_kills import KnownKills, known_kills
from stress.results.schedule_file import (
    EXPLANATION_FORMAT,
    EXPLANATION_JSON,
    SCHEDULE_JSON,
    StoredSchedule,
    stored,
)
from stress.results.store import RunDirectory, command_line
from stress.runs.explore import PROGRAMS
from stress.runs.explore_request import ExplorationResult, ExploreRequest, obligations_of
from stress.runs.replay import explain_stored
from stress.scenario.errors import StressError
from stress.scenario.load import unstructure
from stress.scenario.variant_files import variants_from
from stress.search.explain_data import Explanation
from stress.search.exploration import ExplorationTally

EXPLAINED = 2
"""The first failing schedules, which are explained when they are stored."""
EXPLAINING_TRIES = 3
"""Random continuations of each prefix for such an explanation; `stress explain` tries more."""


def keep(explored: ExplorationResult, results: Path) -> tuple[ExplorationRecord, RunDirectory]:
    """Store the result in a new directory below `results`; returns its record and the directory."""
    request = explored.request
    directory = RunDirectory.create(results, f"explore-{request.name}", request.seed)
    kills = known_kills(results, "controlled", request.name, explored.wall_s)
    schedules = [
        stored(request.name, request.scenario, request.variant_files, failure)
        for failure in explored.tally.failures.values()
    ]
    for number, schedule in enumerate(schedules, 1):
        directory.write_text(SCHEDULE_JSON.format(number), schedule.text())
    stories = _stories(schedules)
    for number, story in stories.items():
        directory.write_text(EXPLANATION_JSON.format(number), EXPLANATION_FORMAT.text(story))
    record = record_of(explored, directory.path.name, kills)
    directory.write_text(EXPLORE_JSON, EXPLORATION_FORMAT.text(record))
    publish_exploration(directory, record, stories)
    return record, directory


def _stories(schedules: Sequence[StoredSchedule]) -> dict[int, Explanation]:
    """Explanations of the first schedules, by their number from 1 on."""
    stories = {}
    for number, schedule in enumerate(schedules[:EXPLAINED], 1):
        with contextlib.suppress(StressError):  # one that cannot be explained is shown without
            stories[number] = explain_stored(schedule, tries=EXPLAINING_TRIES)
    return stories


def record_of(
    explored: ExplorationResult, directory: str, selftest: KnownKills | None = None
) -> ExplorationRecord:
    """The record of a result that goes into the directory of this name, with its certificate;
    `selftest` is what the newest selftest has shown."""
    request, tally, judgement = explored.request, explored.tally, explored.judgement
    scenario = request.scenario
    expected = scenario.expect.names
    fired = tally.fired()
    return ExplorationRecord(
        id=directory,
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
        certificate=_certificate(explored, selftest),
        failures=tuple(_stored_failures(request, tally)),
        environment=environment.observe(),
        scenario=unstructure(scenario),
        harness_errors=tuple(tally.errors),
    )


def _certificate(explored: ExplorationResult, selftest: KnownKills | None) -> Certificate:
    request, tally = explored.request, explored.tally
    asked = [
        f"{request.schedules:,} schedules" if request.schedules else "",
        f"{request.seconds:g} s" if request.seconds else "",
    ]
    wanted = " or ".join(filter(None, asked)) or "everything"
    return certificate_of_exploration(
        request.scenario,
        request.strategy,
        f"{tally.schedules:,} schedules of {tally.steps:,} steps in {explored.wall_s:.1f} s; "
        f"{wanted} asked for",
        tally,
        explored.judgement.verdict,
        obligations_of(request.scenario, tally),
        selftest,
        -(-tally.schedules // PROGRAMS),
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
            file=SCHEDULE_JSON.format(number),
            splat=report.render(),
            suspects=suspects_of(report, known),
        )
