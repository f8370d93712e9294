"""Stored results of every kind, made up for tests, and directories that hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attrs import evolve

from stress.commands import selftest as selftest_command
from stress.report import exploration_console
from stress.report.publish import publish_exploration, publish_run
from stress.results.exploration_record import EXPLORATION_FORMAT, ExplorationRecord
from stress.results.run_record import RUN_FORMAT, RunRecord
from stress.results.store import RunDirectory
from stress.runs.campaign import SeedOutcome
from stress.runs.campaign_summary import CampaignRecord
from stress.runs.campaign_summary import record_of as campaign_of
from stress.runs.explore_request import ExplorationResult, ExploreRequest, judgement_of
from stress.runs.explore_store import record_of
from stress.scenario.load import load
from stress.search.exploration import ExplorationTally, Failure
from stress.search.schedule import Schedule
from stress.selftest import stored as selftests
from stress.selftest.agreement import Agreement
from stress.selftest.attempt import Attempt, Fired
from stress.selftest.detectors.detectors import SELF_TESTS, SelfTestResult
from stress.selftest.selftest import MatrixRow, Options, Selftest
from tests.records import ENVIRONMENT, record
from tests.unit.stress.search.programs import broken

CONFIGS = Path(__file__).parents[1] / "configs"
SCENARIOS = sorted(path for path in CONFIGS.rglob("*.toml") if "studies" not in path.parts)
SCENARIO = load(CONFIGS / "explore" / "fault-vs-delete.toml")


def exploration(
    *, failures: int = 0, variant_files: tuple[str, ...] = (), **changes: Any
) -> ExplorationRecord:
    """An exploration of ten schedules with so many failures."""
    found = {
        f"O1/stale-tlb/{number}": Failure(
            evolve(
                broken("O1", "stale-tlb"),
                subject=str(number),
                headline=f"BUG: stale | <translation> {number}",
            ),
            (broken("O4", "else"),),
            Schedule(3, (1, 2, 2, 1), 77),
            (("vcpu0", "start"),) * 4,
            5,
            0.25,
            "pct:2",
        )
        for number in range(failures)
    }
    tally = ExplorationTally(
        schedules=10,
        steps=100,
        counters=dict.fromkeys(SCENARIO.obligations, 10),
        failures=found,
        failing=failures,
    )
    tally.members = {"pct:3": {"schedules": 10, "classes": 4}}
    tally.curve = [(1, 1), (10, 4)]
    tally.judged = {"O1": 12}
    tally.points = {"P1"}
    request = ExploreRequest(
        SCENARIO, "fault-vs-delete", 1, "portfolio", variant_files, schedules=10
    )
    made = record_of(
        ExplorationResult(
            request, tally, judgement_of(request, tally), "2026-11-22T12:00:00Z", 1.5
        ),
        "made-up",
    )
    return evolve(made, command="stress explore -c x.toml", environment=ENVIRONMENT, **changes)


def console(explored: ExplorationResult) -> list[str]:
    """What the console says of a result, line by line."""
    return list(exploration_console.lines(record_of(explored, "made-up")))


def campaign() -> CampaignRecord:
    """A campaign of two runs that came to an end, one that did not, and one that was not made."""
    made = (
        SeedOutcome(1, record(), "results/1"),
        SeedOutcome(2, record(findings=2), "results/2"),
        SeedOutcome(3, trouble="exit code 9"),
    )
    return campaign_of("quick", (1, 2, 3, 4), made, "interrupted")


def selftest(*, alive: bool = False) -> selftests.SelftestRecord:
    """A selftest of one mutant on both engines, one control and one correct case; the engines have
    been compared on two scenarios."""
    fired = Fired("O12", "stale-root", "BUG: a stale root", ("O12",))
    kill = Attempt(
        "stale-check-skipped",
        "controlled",
        1,
        not alive,
        0.5,
        12,
        "pct",
        () if alive else (fired,),
        (),
        40,
    )
    rows = [
        MatrixRow(
            "mutant",
            "stale-check-skipped",
            "controlled",
            "explore/obsolete-root",
            "",
            ("O12",),
            1,
            [kill],
        ),
        MatrixRow("mutant", "stale-check-skipped", "threads", "quick", "", ("O12",), 2, []),
        MatrixRow(
            "control",
            "harmless",
            "controlled",
            "explore/two-vcpus",
            "",
            (),
            1,
            [Attempt("harmless", "controlled", 1, False, done=9)],
        ),
        MatrixRow(
            "correct",
            "keep-valid",
            "controlled",
            "explore/move",
            "",
            (),
            1,
            [Attempt("", "controlled", 1, False, done=7)],
        ),
    ]
    detectors = tuple(
        SelfTestResult(test, (), ("nothing was reported",) if alive else ())
        for test in SELF_TESTS[:2]
    )
    date = "2026-11-22T13:00:00Z"
    return selftests.record_of(
        Selftest(
            *(Options(seeds=1), rows, {"other": "needs luck"}, date, 12.0, 0, ENVIRONMENT),
            detectors=detectors,
            agreements=(
                Agreement("move", 60, 5, ("point: P9",) if alive else (), 1200, 34),
                Agreement("two-vcpus", 50, 0, (), 900, 20),
            ),
        )
    )


def keep_run(results: Path, kept: RunRecord | None = None, *, reports: bool = False) -> Path:
    """A directory with a run in it."""
    kept = kept or record()
    directory = RunDirectory.create(results, kept.name, kept.seed)
    kept = evolve(kept, id=directory.path.name)
    directory.write_text("run.json", RUN_FORMAT.text(kept))
    if reports:
        publish_run(directory, kept)
    return directory.path


def keep_exploration(
    results: Path, kept: ExplorationRecord | None = None, *, reports: bool = False
) -> Path:
    """A directory with an exploration in it."""
    kept = kept or exploration()
    directory = RunDirectory.create(results, f"explore-{kept.name}", kept.seed)
    directory.write_text("explore.json", EXPLORATION_FORMAT.text(kept))
    if reports:
        publish_exploration(directory, kept, {})
    return directory.path


def keep_selftest(
    results: Path, kept: selftests.SelftestRecord | None = None, *, reports: bool = False
) -> Path:
    """A directory with a selftest in it."""
    kept = kept or selftest()
    directory = RunDirectory.create(results, "selftest", 1)
    directory.write_text("selftest.json", selftests.SELFTEST_FORMAT.text(kept))
    if reports:
        selftest_command.publish(directory, kept)
    return directory.path
