"""Exploring detects: every broken variant and every defect as posted is found under control, by
what its scenario expects; as many schedules of the mended design find nothing, and the small
scenarios pass on it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from attrs import evolve

from stress.commands.scenarios import MENDED, load_all, small_scenario
from stress.results.verdict import Verdict
from stress.runs.explore import explore
from stress.runs.explore_request import ExplorationResult, ExploreRequest
from stress.scenario.load import load

CONFIGS = Path(__file__).parents[2] / "configs"
BROKEN = {
    path.stem: path
    for folder in ("BUSTED", "candidates", "rfc-v1")
    for path in sorted((CONFIGS / folder).glob("*.toml"))
}
FAILING = [name for name, path in BROKEN.items() if load(path).explore.scenario is not None]
ONE_DEFECT = [name for name in FAILING if BROKEN[name].parent.name == "rfc-v1"]
SMALL = sorted((CONFIGS / "explore").glob("*.toml"))
MOST = 400
"""Schedules after which a search has failed."""
LUCKY = {
    "mmio-cached-in-flux": 5,
    "put-before-zap": 6,
    "pml-flushed-after-exit": 12,
    "pml-request-not-awaited": 4,
    "request-check-skipped": 2,
    "stale-check-skipped": 3,
    "yield-in-exported-zap": 5,
    "R07-spurious-is-failure": 1,
    "R09-mmio-sptes-survive": 3,
    "R10-nx-toggle-race": 3,
    "R11-nx-recovery-warns": 4,
    "R14-teardown-order": 2,
    "R18-mmio-spte-walked": 6,
    "R19-device-writes-not-logged": 4,
}
"""Seeds that find it soon; what is not here is found at once by any."""
TRIES = 3
"""So many seeds are tried, one after another: luck does not outlast every change of the
scheduler."""
AT_LEAST = 20
"""So many schedules of the mended design are explored even where the first one finds the defect."""


def explored(name: str, seed: int, schedules: int, *overrides: str) -> ExplorationResult:
    """What `stress explore` does with a scenario."""
    scenario, _ = load_all(BROKEN[name], overrides, ())
    small = small_scenario(scenario, overrides)
    return explore(ExploreRequest(small, name, seed, small.explore.strategy, schedules=schedules))


def seen(result: ExplorationResult) -> set[str]:
    """Rules and codes of everything that was found."""
    reports = [
        report
        for failure in result.tally.failures.values()
        for report in (failure.report, *failure.others)
    ]
    return {name for report in reports for name in (report.rule, report.code)}


def found(name: str, first: int, *overrides: str) -> ExplorationResult:
    """The search that finds what the scenario expects."""
    expected = load(BROKEN[name]).expect.names
    assert expected
    fired: set[str] = set()
    for seed in range(first, first + TRIES):
        result = explored(name, seed, MOST, *overrides)
        assert result.tally.errors == []
        if seen(result) & set(expected):
            assert result.judgement.verdict is Verdict.FAIL, result.judgement.reasons
            return result
        fired |= seen(result)
    pytest.fail(f"{sorted(fired) or 'nothing'}, expected one of {expected}")


def defect_of(name: str) -> str:
    """The variant that takes just this mend out, as the scenario's comment says."""
    (variant,) = re.findall(r"vm\.variants=\[\"(.+?)\"\]", BROKEN[name].read_text(encoding="utf-8"))
    return str(variant)


def test_only_what_is_no_race_has_no_small_scenario() -> None:
    assert set(BROKEN) - set(FAILING) == {"R13-unbounded-zap", "R16-tables-never-shrink"}


@pytest.mark.parametrize("name", FAILING)
def test_exploring_finds_what_the_scenario_expects_and_not_once_mended(name: str) -> None:
    result = found(name, LUCKY.get(name, 1))
    mended = explored(name, result.request.seed, max(result.tally.schedules, AT_LEAST), *MENDED)
    assert list(mended.tally.failures) == []
    assert mended.tally.errors == []
    assert mended.tally.unfinished == 0


@pytest.mark.parametrize("name", ONE_DEFECT)
def test_one_defect_in_the_mended_design_is_found(name: str) -> None:
    found(name, LUCKY.get(name, 1), "vm.profile=hardened", f'vm.variants=["{defect_of(name)}"]')


@pytest.mark.parametrize("path", SMALL, ids=lambda path: path.stem)
def test_a_small_scenario_passes_on_the_correct_model_and_meets_its_obligations(path: Path) -> None:
    scenario = load(path)
    assert scenario.title
    assert scenario.obligations
    assert scenario.vm.variants == ()
    # what is rare needs more schedules than what is common, or luckier ones
    for number in range(6):
        result = explore(
            ExploreRequest(scenario, path.stem, 1 + number, "portfolio", schedules=25 << number)
        )
        assert list(result.tally.failures) == []
        if result.judgement.verdict is Verdict.PASS:
            return
    pytest.fail("; ".join(result.judgement.reasons))


@pytest.mark.parametrize("name", ["fault-vs-delete", "delete-vs-dma", "two-vcpus"])
def test_nothing_is_found_inside_the_locks_of_the_library(name: str) -> None:
    scenario = load(CONFIGS / "explore" / f"{name}.toml")
    library = evolve(scenario, explore=evolve(scenario.explore, lock_granularity="library"))
    atomic, inside = (
        explore(ExploreRequest(each, name, 1, "portfolio", schedules=5))
        for each in (scenario, library)
    )
    assert inside.tally.schedules == 5
    assert list(inside.tally.failures) == []
    assert inside.tally.errors == []
    assert inside.tally.steps > atomic.tally.steps
