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
from stress.results.known import KNOWN
from stress.results.known_kills import KnownKills, known_kills
from stress.results.schedule_file import (
    EXPLANATION_FORMAT,
    EXPLANATION_JSON,
    SCHEDULE_JSON,
    StoredSchedule,
    stored,
)
from stress.results.store import RunDirectory, command_line, keep, now, owner
from stress.results.verdict import Verdict
from stress.runs.explore import PROGRAMS
from stress.runs.explore_request import (
    ExplorationResult,
    ExploreRequest,
    judgement_so_far,
    obligations_of,
)
from stress.runs.replay import explain_stored
from stress.scenario.errors import ResultError, StressError
from stress.scenario.load import unstructure
from stress.scenario.variant_files import variants_from
from stress.search.explain_data import Explanation
from stress.search.exploration import ExplorationTally

KILLS_WITHIN_S = 10.0
"""Seconds of an exploration that only schedules bound, to tell which mutants would have died in
it while it goes on."""
EXPLAINED = 2
"""The first failing schedules, which are explained when they are stored."""
EXPLAINING_TRIES = 3
"""Random continuations of each prefix for such an explanation; `stress explain` tries more."""


class ExplorationKeeper:
    """Keeps the record of an exploration up to date in a directory below `results`, from the first
    look on."""

    SAVE_EVERY_S = 2.0

    def __init__(self, request: ExploreRequest, results: Path) -> None:
        self.directory = RunDirectory.create(results, f"explore-{request.name}", request.seed)
        self._request = request
        self._kills = known_kills(
            results, "controlled", request.name, request.seconds or KILLS_WITHIN_S
        )
        self._started = now()
        self._next_save = 0.0
        self._schedules: list[StoredSchedule] = []

    def look(self, tally: ExplorationTally) -> None:
        """Called often: saves now and then, and at once when something was found. Raises
        `ResultError` if nothing can ever be kept."""
        found = len(tally.failures) > len(self._schedules)
        if found:
            KNOWN.judged(Verdict.FAIL)
        if not found and tally.seconds < self._next_save:
            return
        first = self._next_save == 0.0
        self._next_save = tally.seconds + self.SAVE_EVERY_S
        try:
            self._save(tally)
        except ResultError:  # a full disk must not end the search
            if first and not found:
                raise

    def finish(self, explored: ExplorationResult) -> tuple[ExplorationRecord, Verdict, str]:
        """Store the result, as `stress.results.store.keep` does; returns the record, too."""
        KNOWN.judged(explored.judgement.verdict)
        kills = known_kills(
            self.directory.path.parent, "controlled", self._request.name, explored.wall_s
        )
        record = record_of(explored, self.directory.path.name, kills)
        self._learn(explored.tally)

        def reports() -> None:
            stories = _stories(self._schedules)
            for number, story in stories.items():
                text = EXPLANATION_FORMAT.text(story)
                self.directory.write_text(EXPLANATION_JSON.format(number), text)
            publish_exploration(self.directory, record, stories)

        verdict, trouble = keep(
            self.directory,
            explored.judgement.verdict,
            (EXPLORE_JSON, EXPLORATION_FORMAT.text(record)),
            reports,
            {
                SCHEDULE_JSON.format(number): schedule.text().encode()
                for number, schedule in enumerate(self._schedules, 1)
            },
        )
        return record, verdict, trouble

    def _save(self, tally: ExplorationTally) -> None:
        so_far = ExplorationResult(
            self._request, tally, judgement_so_far(tally), self._started, tally.seconds, "running"
        )
        record = record_of(so_far, self.directory.path.name, self._kills)
        KNOWN.keeps_in(self.directory.path)
        self.directory.write_text(EXPLORE_JSON, EXPLORATION_FORMAT.text(record))
        for number, schedule in self._learn(tally):
            self.directory.write_text(SCHEDULE_JSON.format(number), schedule.text())

    def _learn(self, tally: ExplorationTally) -> list[tuple[int, StoredSchedule]]:
        """The schedules that have failed since the last time, numbered from 1 on over all."""
        request, known = self._request, len(self._schedules)
        self._schedules += [
            stored(request.name, request.scenario, request.variant_files, failure)
            for failure in list(tally.failures.values())[known:]
        ]
        return list(enumerate(self._schedules, 1))[known:]


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
    pid, pid_started = owner()
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
        status=explored.status,
        pid=pid,
        pid_started=pid_started,
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
