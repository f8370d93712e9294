"""The stored form of a run, with its certificate: one frozen value that every report is a pure
function of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from attrs import evolve, field, frozen

from stress.observe.close_calls import CLOSE_CALLS
from stress.observe.coverage import Coverage
from stress.observe.histograms import Latency
from stress.observe.resources import Sample
from stress.observe.root_lives import RootLives
from stress.observe.series import TimeSeries
from stress.results.bounds import upper_bound
from stress.results.certificate import Bound, Certificate, Exercise, Gap, certify
from stress.results.figures import MeasuredFigure
from stress.results.inputs import VariantFile
from stress.results.known_kills import KnownKills
from stress.results.serialise import Format, fitted
from stress.results.verdict import Obligation
from stress.scenario.types import Scenario

RACES: dict[str, str] = {
    **{name: CLOSE_CALLS[name] for name in ("exported_zaps_mid_walk", "flushes_in_guest")},
    "stale_faults": "faults that a zap overtook",
    "rcu_waits_with_reader": "RCU readers that a grace period had to wait for",
}
"""The trials of a run on real threads: a lost race would have been a failure, and each was run to
its end."""


@frozen
class StoredFinding:
    """A finding as it is kept: identity, when and how often it was seen, and the whole splat.
    `suspects` are the known defects of this build that break this rule, by their titles."""

    rule: str
    code: str
    signature: str
    headline: str
    sentence: str
    source: str
    task: str
    at_s: float
    count: int
    splat: str
    suspects: tuple[str, ...] = ()


@frozen
class Environment:
    """Where the run took place: versions, interpreter, machine."""

    version: str
    python: str
    implementation: str
    free_threaded_build: bool
    gil_enabled: bool
    packages: dict[str, str]
    platform: str
    cpu: str
    cpus: int
    memory_bytes: int


@frozen
class Uncertified:
    """Stands for the certificate of a run that has no verdict: it goes on, or was killed."""


@frozen
class RunRecord:
    """Everything known about a run. `status` is running, finished or interrupted; a run that was
    killed stays running.

    Times are seconds, latencies nanoseconds, memory bytes. `pid` and `pid_started` identify the
    process that wrote it. `variants` are all of them by name, `variant_files` the files that some
    of them came from. `judged` is how often each rule had something to decide, `points` are the
    preemption points that were reached, `selftest` what the newest selftest had shown when the run
    began.
    """

    id: str
    status: str
    verdict: str
    reasons: tuple[str, ...]
    name: str
    scenario: dict[str, Any]
    seed: int
    expected_rules: tuple[str, ...]
    variants: tuple[str, ...]
    command: str
    started: str
    setup_s: float
    run_s: float
    pid: int
    pid_started: float
    environment: Environment
    counters: dict[str, int] = field(factory=dict)
    obligations: tuple[Obligation, ...] = ()
    actors: dict[str, dict[str, int]] = field(factory=dict)
    latencies: tuple[Latency, ...] = ()
    figures: tuple[MeasuredFigure, ...] = ()
    findings: tuple[StoredFinding, ...] = ()
    harness_errors: tuple[str, ...] = ()
    resources: tuple[Sample, ...] = ()
    memory_growth: int | None = None
    lock_orders: tuple[tuple[str, str, str, str], ...] = ()
    variant_files: tuple[VariantFile, ...] = ()
    judged: dict[str, int] = field(factory=dict)
    points: tuple[str, ...] = ()
    series: TimeSeries = field(factory=TimeSeries)
    roots: RootLives = field(factory=RootLives)
    coverage: Coverage = field(factory=Coverage)
    selftest: KnownKills | None = None
    certificate: Certificate | Uncertified = field(factory=Uncertified)

    @property
    def expected_seen(self) -> tuple[str, ...]:
        """The expected rules, or codes of findings, that fired."""
        fired = {name for finding in self.findings for name in (finding.rule, finding.code)}
        return tuple(rule for rule in self.expected_rules if rule in fired)

    @property
    def certified(self) -> Certificate:
        """The certificate; raises ValueError if the run has none (`completed` makes one)."""
        if isinstance(self.certificate, Uncertified):
            raise ValueError("the run has no verdict, and so no certificate")
        return self.certificate


RUN_FORMAT = Format(RunRecord, "tdp-stress/run/2")


def certificate_of_run(record: RunRecord, scenario: Scenario) -> Certificate:
    """The certificate of a run of `scenario`, from everything else that its record holds."""
    environment = record.environment
    build = "GIL" if environment.gil_enabled else "free-threaded"
    asked = scenario.budget.span
    bounds = () if record.findings else tuple(_races(record.counters))
    return certify(
        Exercise(
            scenario=scenario,
            threads=True,
            counters=record.counters,
            obligations=record.obligations,
            judged=record.judged,
            points=record.points,
            selftest=record.selftest,
            failed=bool(record.findings),
        ),
        record.verdict,
        f"{record.run_s:.1f} of {asked} s on real threads, {environment.cpus} CPUs, {build}",
        bounds=bounds,
        assumption=(
            "trials are exchangeable: the same scenario on a machine that is as fast and as busy"
        )
        if bounds
        else "",
        gaps=_of_the_build(environment.gil_enabled),
    )


def completed(record: RunRecord) -> RunRecord:
    """The record with its certificate: the stored one, or a new one for a run that was killed.
    Raises `ResultError` if such a run holds no scenario."""
    if not isinstance(record.certificate, Uncertified):
        return record
    scenario = fitted(record.scenario, f"the scenario of {record.id}", Scenario, "this version")
    return evolve(record, certificate=certificate_of_run(record, scenario))


def _races(counters: Mapping[str, int]) -> Iterator[Bound]:
    for name, what in RACES.items():
        trials = counters.get(name, 0)
        if trials:
            yield Bound(f"{name} ({what})", trials, upper_bound(trials))


def _of_the_build(gil: bool) -> tuple[Gap, ...]:
    if not gil:
        return ()
    return (
        Gap(
            "this build",
            ("the GIL lets one thread run at a time: run it on free-threaded Python, too",),
        ),
    )
