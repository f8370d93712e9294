"""The stored form of a run: one frozen value that every report is a pure function of."""

from __future__ import annotations

import json
from typing import Any

from attrs import field, frozen

from stress.observe.coverage import Coverage
from stress.observe.histograms import Latency
from stress.observe.resources import Sample
from stress.observe.root_lives import RootLives
from stress.observe.series import TimeSeries
from stress.results.figures import MeasuredFigure
from stress.results.inputs import VariantFile
from stress.results.known_kills import KnownKills
from stress.results.serialise import fitted, loaded, plain
from stress.results.verdict import Obligation
from stress.scenario.errors import ResultError

SCHEMA = "tdp-stress/run/2"
"""Name and version of the format; the number goes up when a reader of the old one would misread the
new one."""


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
class RunRecord:
    """Everything known about a run. `status` is running, finished or interrupted; a run that was
    killed stays running.

    Times are seconds, latencies nanoseconds, memory bytes. `pid` and `pid_started` identify the
    process that wrote it. `variants` are all of them by name, `variant_files` the files that some
    of them came from. `judged` is how often each rule had something to decide, `points` are the
    preemption points that were reached, `selftest` what the newest selftest had shown when the run
    began. `certificate` follows from the rest (`stress.results.certificate`, which every report
    asks anew); it is stored for those who read the JSON.
    """

    schema: str
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
    certificate: dict[str, Any] = field(factory=dict)

    @property
    def expected_seen(self) -> tuple[str, ...]:
        """The expected rules, or codes of findings, that fired."""
        fired = {name for finding in self.findings for name in (finding.rule, finding.code)}
        return tuple(rule for rule in self.expected_rules if rule in fired)


def to_json(record: RunRecord) -> str:
    """The record as JSON text."""
    return json.dumps(plain(record), indent=1, sort_keys=False) + "\n"


def from_json(text: str, where: str) -> RunRecord:
    """The record in a JSON text; `ResultError` says what is wrong with it."""
    data = loaded(text, where, "run directory")
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != SCHEMA:
        raise ResultError(
            f"{where} has schema {schema!r}; this version reads {SCHEMA!r}: use the version that "
            "has written it"
        )
    return fitted(data, where, RunRecord, SCHEMA)
