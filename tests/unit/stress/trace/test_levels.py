"""What a recording of each level proves: recordings of three kernels, reduced to what the script of
that level records. None of them is accused of anything, and something is proved at every level."""

from __future__ import annotations

from functools import cache

import pytest

from stress.results.verdict import Verdict
from stress.trace.checker import CheckResult
from stress.trace.record import provable
from tests.recordings import NAMES, OTHER_KERNELS, judge, lines_of, reduced

PROVED = {
    1: {"transitions", "tables"},
    2: {"transitions", "tables", "flushes", "obsolete"},
    3: {"transitions", "tables", "flushes", "obsolete", "roots"},
}
"""The checks that hold something in every recording of a level whose VM begins and ends in it."""
OF_SOME = {
    1: {"frozen"},
    2: {"frozen", "slots"},
    3: {"frozen", "slots", "statistics"},
}
"""The checks that have something to judge in some recordings only: there has to be a slot that is
deleted, or a table that is zapped."""


@cache
def at_level(name: str, level: int) -> CheckResult:
    return judge(reduced(lines_of(name), level))


def held(result: CheckResult) -> set[str]:
    return {name for name, tally in result.tallies.items() if tally.held}


@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize("name", [*NAMES, *OTHER_KERNELS])
def test_no_level_accuses_a_healthy_kernel(name: str, level: int) -> None:
    result = at_level(name, level)
    assert result.reports == ()
    assert result.judgement.verdict is not Verdict.FAIL


@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_each_level_proves_what_it_says(name: str, level: int) -> None:
    result = at_level(name, level)
    assert held(result) - OF_SOME[level] == PROVED[level]
    assert held(result) <= set(provable(level))
    assert PROVED[level] <= set(provable(level)) - set(result.missing)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_every_check_that_a_level_can_prove_holds_somewhere(level: int) -> None:
    proved = set().union(*(held(at_level(name, level)) for name in NAMES))
    assert proved == PROVED[level] | OF_SOME[level]


@pytest.mark.parametrize("level", [1, 2])
def test_what_a_level_cannot_judge_is_named(level: int) -> None:
    result = at_level("w3_move", level)
    assert result.judgement.verdict is Verdict.INCONCLUSIVE
    assert "roots" in result.missing
    assert "kvm_tdp_mmu_put_root" in result.missing["roots"]


@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_finding_that_needs_only_the_change_itself_is_made_at_every_level(level: int) -> None:
    result = at_level("findings/mmio_over_leaf", level)
    assert [report.code for report in result.reports] == ["mmio-over-leaf"]


@pytest.mark.parametrize(("level", "codes"), [(1, []), (2, []), (3, ["owed-by-another"])])
def test_a_finding_that_needs_returns_and_ranges_is_made_where_they_are(
    level: int, codes: list[str]
) -> None:
    result = at_level("findings/hollow_slot", level)
    assert [report.code for report in result.reports] == codes
