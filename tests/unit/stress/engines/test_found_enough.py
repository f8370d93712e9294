"""When a run ends: some time after what was expected was seen, or when too much is broken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mmu.invariants import STANDS_FOR
from mmu.report import Report
from mmu.runtime import Runtime
from stress.engines.session import Finding, Session
from stress.engines.threads import ThreadEngine
from stress.observe.resources import Resources
from stress.scenario.types import Budget, Expect, Limits, Positive, Seconds
from tests.engine import run_scenario, small

Enough = Callable[..., bool]
TIGHT = Limits(write_hold_s=Seconds(1e-9))
"""Every write-held section is a finding."""


@pytest.fixture
def enough() -> Iterator[Enough]:
    """Whether a run that has gone on for ten seconds, with these (code, seconds) found, has found
    enough. It settles for three seconds, and five findings are too many."""
    sessions: list[Session] = []

    def ask(*found: tuple[str, float], **expect: Any) -> bool:
        budget = Budget(settle_s=Seconds(3.0), max_findings=Positive(5))
        session = Session(small(budget=budget, expect=Expect(**expect)), 1, Runtime())
        sessions.append(session)
        reports = [
            Finding(
                Report(
                    "O1", code, "BUG", "a rule", "a source", stands_for=STANDS_FOR.get(code, "")
                ),
                at_s,
            )
            for code, at_s in found
        ]
        session.findings = lambda: reports  # type: ignore[method-assign]
        session.elapsed = lambda: 10.0  # type: ignore[method-assign]
        return ThreadEngine(session, Resources(), lambda _: None)._found_enough()

    yield ask
    for session in sessions:
        session.vm.kvm.rcu.shutdown()


def test_nothing_found_is_not_enough(enough: Enough) -> None:
    assert not enough()
    assert not enough(codes=("missing-flush",))


def test_without_expected_codes_any_finding_counts(enough: Enough) -> None:
    assert enough(("leak-roots", 7.0))
    assert not enough(("leak-roots", 7.1))
    assert enough(("leak-roots", 6.0), ("stale-tlb", 9.9)), "the first one counts"


def test_expected_rules_are_waited_for_like_expected_codes(enough: Enough) -> None:
    assert not enough(("leak-roots", 6.0), rules=("O12",))
    assert enough(("leak-roots", 6.0), rules=("O12", "O1"))
    assert enough(("I8", 6.0), rules=("O6",)), "an invariant stands for its rule"


def test_what_was_not_expected_does_not_end_the_run(enough: Enough) -> None:
    assert not enough(("leak-roots", 0.0), ("stale-tlb", 1.0), codes=("missing-flush",))


def test_what_was_expected_does_some_time_after_it_was_seen(enough: Enough) -> None:
    assert enough(("leak-roots", 0.0), ("missing-flush", 7.0), codes=("missing-flush", "stale-tlb"))
    assert not enough(
        ("leak-roots", 0.0), ("missing-flush", 7.5), codes=("missing-flush", "stale-tlb")
    )
    assert enough(
        ("stale-tlb", 2.0), ("missing-flush", 9.0), codes=("missing-flush", "stale-tlb")
    ), "the first of them counts"


@pytest.mark.parametrize("expect", [{}, {"codes": ("missing-flush",)}])
def test_too_much_is_enough_whatever_was_expected(enough: Enough, expect: dict[str, Any]) -> None:
    found = [(f"code-{number}", 9.9) for number in range(5)]
    assert enough(*found, **expect)
    assert not enough(*found[:4], **expect)


def test_a_run_goes_on_until_the_expected_code_is_there() -> None:
    scenario = small(
        budget=Budget(duration_s=Seconds(1.0), settle_s=Seconds(0.01)),
        expect=Expect(codes=("never",)),
        limits=TIGHT,
    )
    session, outcome = run_scenario(scenario)
    assert {finding.report.code for finding in session.findings()} == {"long-write-hold"}
    assert outcome.run_s >= 1.0
    ended, _ = run_scenario(
        small(budget=scenario.budget, limits=TIGHT, expect=Expect(codes=("long-write-hold",)))
    )
    assert ended.findings()[0].report.code == "long-write-hold"


def test_a_run_that_expects_nothing_ends_soon_after_its_first_finding() -> None:
    budget = Budget(duration_s=Seconds(20.0), settle_s=Seconds(0.01))
    _, outcome = run_scenario(small(budget=budget, limits=TIGHT))
    assert outcome.run_s < 10.0
    assert outcome.completed
