"""One run from start to end: session, engine, stored record, verdict."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from attrs import evolve, field, frozen

from mmu.runtime import Runtime
from mmu.task import living_tasks
from mmu.variant import Variant
from stress.engines.session import Session, suspects_of
from stress.engines.threads import RunOutcome, ThreadEngine
from stress.observe.resources import Resources
from stress.results import environment, trace_events
from stress.results.figures import figures_of
from stress.results.inputs import fingerprints
from stress.results.known import KNOWN
from stress.results.known_kills import known_kills
from stress.results.run_record import RunRecord, StoredFinding, certificate_of_run
from stress.results.store import RunDirectory, command_line, now, owner
from stress.results.verdict import (
    Evidence,
    Judgement,
    Obligation,
    Verdict,
    accesses_in,
    judge,
    judged_rules,
)
from stress.scenario.errors import ResultError
from stress.scenario.load import unstructure
from stress.scenario.types import Budget, Scenario

SAVE_EVERY_S = 1.0
GONE = ("stale-tlb", "stale-map", "write-after-release", "mmio-spte-walked")
"""Codes of findings that stand for an access to memory that was somebody else's."""


@frozen
class RunRequest:
    """What to run: the scenario and its short name, the seed, variants from files, where results
    go, which files those are, and the command that asked for it (None: this process's)."""

    scenario: Scenario
    name: str
    seed: int
    variants: tuple[Variant, ...]
    results: Path
    variant_files: tuple[str, ...] = ()
    command: str | None = None


@frozen
class RunProgress:
    """What a live display shows: seconds into the run, its budget, the counters, the number of
    findings so far."""

    elapsed_s: float
    budget: Budget
    counters: dict[str, int]
    findings: int


@frozen
class FinishedRun:
    """A run that has ended: its record, and by name the other files that belong beside it, all
    still to be written to the directory, which was kept up to date so far."""

    record: RunRecord
    directory: RunDirectory
    files: Mapping[str, bytes] = field(factory=dict)


def execute(
    request: RunRequest,
    on_progress: Callable[[RunProgress], None],
    directory: RunDirectory | None = None,
) -> FinishedRun:
    """Run the scenario, and keep its record in `directory` up to date; without one, in a new
    directory below the request's results. Raises `ResultError` if there can be none."""
    session = Session(request.scenario, request.seed, Runtime(), request.variants)
    directory = directory or RunDirectory.create(request.results, request.name, request.seed)
    keeper = _Keeper(request, session, directory, on_progress)
    keeper.begin()
    engine = ThreadEngine(session, keeper.resources, keeper.tick)
    outcome = engine.run()
    record = keeper.final(outcome)
    files = {}
    if request.scenario.observe.timeline:
        files[trace_events.TIMELINE] = trace_events.packed(
            trace_events.trace(record.id, session.timeline.tracks(), record.findings)
        )
    return FinishedRun(record, directory, files)


class _Keeper:
    """Keeps the stored record up to date while the run goes on."""

    def __init__(
        self,
        request: RunRequest,
        session: Session,
        directory: RunDirectory,
        on_progress: Callable[[RunProgress], None],
    ) -> None:
        self.resources = Resources()
        self._request = request
        self._session = session
        self._directory = directory
        self._on_progress = on_progress
        self._next_save = SAVE_EVERY_S
        self._known_findings = 0
        pid, pid_started = owner()
        self._base = RunRecord(
            id=directory.path.name,
            status="running",
            verdict=Verdict.INCONCLUSIVE.name,
            reasons=("the run has not finished",),
            name=request.name,
            scenario=unstructure(request.scenario),
            seed=request.seed,
            variants=(
                *request.scenario.vm.variants,
                *(variant.name for variant in request.variants),
            ),
            expected_rules=request.scenario.expect.names,
            command=request.command or command_line(),
            started=now(),
            setup_s=0.0,
            run_s=0.0,
            pid=pid,
            pid_started=pid_started,
            environment=environment.observe(),
            variant_files=fingerprints(request.variant_files),
            selftest=known_kills(
                request.results, "threads", request.name, request.scenario.budget.duration_s
            ),
        )

    def begin(self) -> None:
        """Keep the record for the first time."""
        KNOWN.keeps_in(self._directory.path)
        self._directory.write(self._snapshot(0.0))

    def tick(self, elapsed: float) -> None:
        """Called often: saves now and then, and at once when something was found; then shows
        progress, so that what was seen is kept."""
        found = len(self._session.findings())
        totals = self._session.totals()
        self._session.series.look(self._session.elapsed(), totals, living_tasks())
        if found > self._known_findings:
            KNOWN.judged(Verdict.FAIL)
        if elapsed >= self._next_save or found > self._known_findings:
            self._next_save = elapsed + SAVE_EVERY_S
            self._known_findings = found
            self.save(elapsed)
        self._on_progress(RunProgress(elapsed, self._request.scenario.budget, totals, found))

    def save(self, elapsed: float) -> None:
        """Write what is known now; a full disk must not end the run."""
        with contextlib.suppress(ResultError):
            self._directory.write(self._snapshot(elapsed))

    def final(self, outcome: RunOutcome) -> RunRecord:
        """The record of the finished run, with its verdict and the certificate of that."""
        self.resources.sample(outcome.run_s)
        judgement = self._judge(outcome)
        record = self._snapshot(outcome.run_s)
        status = "interrupted" if outcome.interrupted else "finished"
        record = evolve(
            record,
            status=status,
            verdict=judgement.verdict.name,
            reasons=judgement.reasons,
            setup_s=round(outcome.setup_s, 3),
        )
        return evolve(record, certificate=certificate_of_run(record, self._request.scenario))

    def _judge(self, outcome: RunOutcome) -> Judgement:
        session = self._session
        totals = session.totals()
        return judge(
            Evidence(
                findings=len(session.findings()),
                harness_errors=session.errors(),
                obligations=self._obligations(totals),
                expected_missing=self._expected_missing(),
                completed=outcome.completed and not outcome.interrupted,
                clean_end=outcome.clean_end,
                quiescent_checks=totals["quiescent_checks"],
                judged=judged_rules(self._request.scenario.oracles.off, session.judged(totals)),
                accesses=None if self._request.scenario.script else accesses_in(totals),
                off=self._request.scenario.oracles.off,
            )
        )

    def _obligations(self, totals: dict[str, int]) -> tuple[Obligation, ...]:
        """What the scenario demands, beside what was reached."""
        return tuple(
            Obligation(name, needed, totals[name])
            for name, needed in self._request.scenario.obligations.items()
        )

    def _expected_missing(self) -> tuple[str, ...]:
        """The rules that the scenario expects, if not one of them fired."""
        fired = {name for finding in self._session.findings() for name in finding.report.names()}
        expected = self._request.scenario.expect.names
        return () if fired & set(expected) else expected

    def _snapshot(self, elapsed: float) -> RunRecord:
        session = self._session
        totals = session.totals()
        latencies = tuple(session.histograms.latencies())
        timed = {latency.operation: latency for latency in latencies}
        found = stored_findings(session)
        bad = sum(finding.count for finding in found if finding.code in GONE)
        return evolve(
            self._base,
            verdict=(Verdict.FAIL if found else Verdict.INCONCLUSIVE).name,
            run_s=round(elapsed, 3),
            counters=totals,
            obligations=self._obligations(totals),
            actors={actor.name: actor.figures() for actor in session.actors},
            latencies=latencies,
            figures=figures_of(totals, timed, session.gauges.peak, session.gauges.last, bad),
            findings=found,
            harness_errors=session.errors(),
            resources=tuple(self.resources.samples),
            memory_growth=self.resources.growth(),
            lock_orders=tuple(session.vm.kvm.sync.lockdep.orders()),
            judged=session.judged(totals),
            points=session.points.reached(),
            series=session.series.series(),
            roots=session.lives.lives(),
            coverage=session.coverage.coverage(),
        )


def stored_findings(session: Session) -> tuple[StoredFinding, ...]:
    """The session's findings in stored form."""
    known = [variant for variant in session.variants if variant.expects]
    found: Sequence[StoredFinding] = [
        StoredFinding(
            rule=item.report.rule,
            code=item.report.code,
            signature=item.report.signature,
            headline=item.report.headline,
            sentence=item.report.sentence,
            source=item.report.source,
            task=item.report.task,
            at_s=item.at_s,
            count=item.report.count,
            splat=item.report.render(),
            suspects=suspects_of(item.report, known),
        )
        for item in session.findings()
    ]
    return tuple(found)
