"""When a run ends: some time after what was expected was seen, or when too much is broken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from attrs import evolve

from mmu.invariants import STANDS_FOR
from mmu.report import Report
from mmu.runtime import Runtime
from stress.engines.session import Finding, Session
from stress.engines.threads import ThreadEngine
from stress.observe.resources import Resources
from stress.scenario.types import Budget, Expect, Limits, Positive, Seconds
from tests.engine import BRIEF, run_scenario, small
from tests.patience import PATIENCE

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


LONG = Budget(duration_s=Seconds(PATIENCE), settle_s=Seconds(0.01))


def codes(session: Session) -> set[str]:
    return {finding.report.code for finding in session.findings()}


@pytest.mark.parametrize("expect", [Expect(), Expect(codes=("long-write-hold",))])
def test_a_run_ends_soon_after_the_first_finding_that_counts(expect: Expect) -> None:
    session, outcome = run_scenario(small(budget=LONG, limits=TIGHT, expect=expect))
    assert codes(session) == {"long-write-hold"}
    assert outcome.completed
    assert outcome.run_s < PATIENCE


def test_a_run_goes_on_after_findings_that_it_does_not_expect() -> None:
    session, outcome = run_scenario(
        small(budget=LONG, limits=TIGHT, expect=Expect(codes=("never",))),
        until=lambda session: codes(session) and session.elapsed() > session.findings()[0].at_s + 1,
    )
    assert codes(session) == {"long-write-hold"}
    assert outcome.completed


# Runs that go on until what they need has happened.


def test_a_run_goes_on_until_its_obligations_are_met() -> None:
    met, outcome = run_scenario(small(obligations={"memslot_deletes": 20, "quiescent_checks": 2}))
    assert met.totals()["memslot_deletes"] >= 20
    assert met.totals()["quiescent_checks"] >= 2
    assert outcome.run_s < PATIENCE


def test_a_run_goes_on_until_something_expected_is_found() -> None:
    session, _ = run_scenario(
        small(limits=TIGHT, expect=Expect(codes=("long-write-hold",)), obligations={"exports": 1})
    )
    assert codes(session) == {"long-write-hold"}


@pytest.mark.parametrize("budget", [evolve(BRIEF, cap_s=Seconds(0.4)), Budget(Seconds(0.4))])
def test_a_run_ends_with_its_cap_or_without_one_with_its_time(budget: Budget) -> None:
    never = {"memslot_deletes": 1 << 40}
    session, outcome = run_scenario(small(budget=budget, obligations=never))
    assert session.owes()
    assert outcome.completed
    assert 0.4 <= outcome.run_s < PATIENCE


@pytest.mark.parametrize(
    ("needed", "owes"),
    [
        ({}, False),
        ({"process_exits": 1}, False),
        ({"process_exits": 2}, True),
        ({"exports": 1}, True),
    ],
)
def test_what_the_end_of_a_run_brings_about_is_not_waited_for(
    needed: dict[str, int], owes: bool
) -> None:
    session = Session(small(obligations=needed), 1, Runtime())
    assert session.owes() is owes
    session.vm.kvm.warn("O5", "test", "BUG: a test", "a rule", "a source")
    assert not session.owes(), "nothing makes up for a finding"
    session.vm.kvm.rcu.shutdown()
