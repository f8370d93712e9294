"""The stored form of a selftest (selftest.json), and the selftest that is in one."""

from __future__ import annotations

import statistics
from typing import Final

from attrs import asdict, evolve, fields_dict, frozen

from stress.results.run_record import Environment
from stress.results.serialise import Format
from stress.results.store import owner
from stress.selftest.agreement import Agreement, State
from stress.selftest.attempt import Attempt, Engine
from stress.selftest.detectors.detectors import SelfTest, SelfTestResult
from stress.selftest.selftest import UNFINISHED, MatrixRow, Options, Selftest, judgement_of

SELFTEST_JSON: Final = "selftest.json"


@frozen
class StoredRow:
    """All attempts on one variant with one engine: what `stress.selftest.selftest.Row` is, and what
    follows from it."""

    name: str
    engine: Engine
    scenario: str
    strategy: str
    state: str
    expects: tuple[str, ...]
    killed: int
    of: int
    wanted: int
    done: int
    median_s: float | None
    range_s: tuple[float, float] | None
    median_work: float | None
    fired: dict[str, int]
    found_by: dict[str, int]
    attempts: tuple[Attempt, ...]


@frozen
class StoredDetector:
    """What came of a detector's self-test: `code` is what had to be reported (empty: nothing),
    `problems` what is wrong."""

    name: str
    code: str
    problems: tuple[str, ...]


@frozen
class StoredAgreement:
    """What both engines have shown of one scenario: `stress.selftest.agreement.Agreement`, and what
    follows from it."""

    scenario: str
    state: State
    both: int
    controlled_only: int
    holes: tuple[str, ...]
    steps: int
    schedules: int
    errors: tuple[str, ...]


@frozen
class SelftestRecord:
    """Everything known about a selftest: when and where, the verdict, how long an attempt may take
    by engine, rules that were off, what was tried, why real threads cannot show some mutants, how
    many attempts were not made (`left`; `stopped` says why), and whether the engines agree.
    `status` is running or finished, `pid` and `pid_started` identify the process that wrote it."""

    date: str
    version: str
    environment: Environment
    verdict: str
    reasons: tuple[str, ...]
    wall_s: float
    left: int
    limits_s: dict[str, float]
    off: tuple[str, ...]
    detectors: tuple[StoredDetector, ...]
    mutants: tuple[StoredRow, ...]
    controls: tuple[StoredRow, ...]
    correct: tuple[StoredRow, ...]
    threads_cannot: dict[str, str]
    stopped: str = ""
    agreements: tuple[StoredAgreement, ...] = ()
    status: str = "finished"
    pid: int = 0
    pid_started: float = 0.0


SELFTEST_FORMAT: Final = Format(SelftestRecord, 1, "stress-selftest")


def record_of(test: Selftest) -> SelftestRecord:
    """A selftest as it is stored; one that goes on is running."""
    judgement = judgement_of(test)
    options = test.options
    pid, pid_started = owner()
    return SelftestRecord(
        date=test.date,
        version=test.environment.version,
        environment=test.environment,
        verdict=judgement.verdict.name,
        reasons=judgement.reasons,
        wall_s=round(test.wall_s, 1),
        left=test.left,
        limits_s={
            "controlled": options.controlled_s,
            "threads": options.threads_s,
            "correct": options.correct_s,
        },
        off=options.off,
        detectors=tuple(
            StoredDetector(result.test.name, result.test.code, result.problems)
            for result in test.detectors
        ),
        mutants=tuple(_stored(row) for row in test.of_kind("mutant")),
        controls=tuple(_stored(row) for row in test.of_kind("control")),
        correct=tuple(_stored(row) for row in test.of_kind("correct")),
        threads_cannot=test.cannot,
        status="running" if test.stopped == UNFINISHED else "finished",
        pid=pid,
        pid_started=pid_started,
        stopped=test.stopped,
        agreements=tuple(
            StoredAgreement(state=each.state, **asdict(each)) for each in test.agreements
        ),
    )


def selftest_of(record: SelftestRecord) -> Selftest:
    """The selftest that was stored, to be told again."""
    limits = record.limits_s
    options = evolve(
        Options(),
        off=record.off,
        controlled_s=limits["controlled"],
        threads_s=limits["threads"],
        correct_s=limits["correct"],
    )
    kinds = (("mutant", record.mutants), ("control", record.controls), ("correct", record.correct))
    rows = [_row(kind, stored) for kind, group in kinds for stored in group]
    detectors = tuple(
        SelfTestResult(SelfTest(each.name, "", each.code, tuple), (), each.problems)
        for each in record.detectors
    )
    return Selftest(
        options,
        rows,
        record.threads_cannot,
        record.date,
        record.wall_s,
        record.left,
        record.environment,
        detectors,
        record.stopped,
        tuple(
            Agreement(**{name: getattr(each, name) for name in fields_dict(Agreement)})
            for each in record.agreements
        ),
    )


def _row(kind: str, stored: StoredRow) -> MatrixRow:
    return MatrixRow(
        kind,
        stored.name,
        stored.engine,
        stored.scenario,
        stored.strategy,
        stored.expects,
        stored.wanted,
        list(stored.attempts),
    )


def _stored(row: MatrixRow) -> StoredRow:
    times = row.seconds
    return StoredRow(
        name=row.name,
        engine=row.engine,
        scenario=row.scenario,
        strategy=row.strategy,
        state=row.state,
        expects=row.expects,
        killed=row.killed,
        of=len(row.attempts),
        wanted=row.wanted,
        done=row.done,
        median_s=round(statistics.median(times), 4) if times else None,
        range_s=(round(times[0], 4), round(times[-1], 4)) if times else None,
        median_work=statistics.median(row.work) if row.work else None,
        fired=dict(row.fired()),
        found_by=dict(row.found_by()),
        attempts=tuple(row.attempts),
    )
