"""The litmus programs of `stress.selftest.litmus`: every schedule of each, every outcome in its
table, and nothing in the table in vain."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from attrs import evolve

from mmu.variant import Variant
from stress.engines.carrier import pinned
from stress.mutants import SHIPPED
from stress.search.bounded import PreemptionBounded
from stress.search.state_cache import StateCache
from stress.selftest.litmus import FAMILIES, LITMUS
from stress.selftest.litmus.base import (
    ACCEPTABLE,
    FORBIDDEN,
    INTERESTING,
    UNGRADED,
    Litmus,
    LitmusBench,
    Tasks,
    acceptable,
    forbidden,
)
from stress.selftest.litmus.run import FAIL, PASS, LitmusResult, run_all, run_litmus, table

SMALL = 2_000
"""Executions that no program may need."""


def of_grade(litmus: Litmus, *grades: str) -> set[str]:
    """The outcomes that have one of these grades."""
    return {outcome for outcome, grade in litmus.grades.items() if grade.grade in grades}


every_program = pytest.mark.parametrize("name", LITMUS)


@pytest.fixture(autouse=True, scope="module")
def one_cpu() -> Iterator[None]:
    with pinned():
        yield


_RESULTS: dict[str, LitmusResult] = {}


def explored(name: str) -> LitmusResult:
    """The exhaustive result of a program; every test may ask, it is explored once."""
    if name not in _RESULTS:
        _RESULTS[name] = run_litmus(LITMUS[name])
    return _RESULTS[name]


def passing(bench: LitmusBench) -> Tasks:
    """Two tasks that each return a letter."""
    word = bench.cell("word")

    def left() -> str:
        word.value = 1
        return "a"

    def right() -> str:
        return "b" if word.value else "c"

    return Tasks(left, right)


def program(**changes: object) -> Litmus:
    """A litmus program for tests of the runner."""
    grades = {"a, b": acceptable("left first"), "a, c": acceptable("right first")}
    return evolve(Litmus("name", "family", "title", "rule", "source", passing, grades), **changes)


# The programs.


@every_program
def test_every_schedule_has_a_graded_outcome_and_the_rule_holds(name: str) -> None:
    result = explored(name)
    assert result.verdict == PASS, table([result])
    assert result.errors == ()


@every_program
def test_the_search_ends_and_is_small(name: str) -> None:
    result = explored(name)
    assert result.exhausted
    assert result.executions <= SMALL


@every_program
def test_the_table_has_no_outcome_in_vain(name: str) -> None:
    """What is acceptable or interesting can be seen; a broken program reaches what it is about."""
    litmus, seen = LITMUS[name], explored(name).seen()
    if litmus.broken:
        assert of_grade(litmus, FORBIDDEN) & seen
    else:
        assert of_grade(litmus, ACCEPTABLE, INTERESTING) == seen


@every_program
def test_an_outcome_that_is_missing_in_the_table_fails(name: str) -> None:
    litmus = LITMUS[name]
    outcome = sorted(explored(name).seen())[0]
    poorer = evolve(
        litmus, grades={each: grade for each, grade in litmus.grades.items() if each != outcome}
    )
    result = run_litmus(poorer)
    assert result.verdict == FAIL
    assert f"ungraded outcome: {outcome}" in result.problems


@every_program
def test_everything_about_it_is_said(name: str) -> None:
    litmus = LITMUS[name]
    assert litmus.title
    assert litmus.rule
    assert litmus.source
    assert litmus.build.__doc__
    assert all(grade.why for grade in litmus.grades.values())
    assert of_grade(litmus, FORBIDDEN) or not litmus.broken


def test_there_are_programs_in_every_family() -> None:
    assert len(LITMUS) >= 28
    assert sum(len(family.programs) for family in FAMILIES) == len(LITMUS)
    assert all(family.programs and family.title for family in FAMILIES)
    assert {litmus.family for litmus in LITMUS.values()} == {family.name for family in FAMILIES}


# The rules, taken out one by one: a mutant or a defect of the posted series, and the program that
# it breaks.

BREACHES = [
    ("request-check-skipped", "flush-against-guest", "old after"),
    ("request-check-skipped", "obsolete-root-request", "obsolete after"),
    ("request-check-skipped", "unexport-against-guest", "old after"),
    ("srcu-wait-skipped", "slot-lookup-against-delete", "use-after-free"),
    ("srcu-wait-skipped", "fault-against-delete", "use-after-free"),
    ("srcu-wait-skipped", "mmio-fault-against-create", "EMULATE, current MMIO SPTE"),
    ("table-freed-at-once", "table-removed-under-walk", "free-without-rcu"),
    ("stale-check-skipped", "notifier-against-fault", "FIXED, old page"),
    ("stale-check-skipped", "invalid-root-against-fault", "map-in-obsolete-root"),
    ("stale-check-skipped", "nx-toggle-against-fetch", "FIXED, huge"),
    ("put-before-zap", "gifted-reference", "last-put"),
    ("double-put-of-invalid-root", "two-zappers-one-gift", "use-after-free"),
    ("exported-root-invalidated", "export-against-invalidation", "the old root, invalid"),
    ("exported-root-invalidated", "delete-against-dma", "WRONG"),
    ("importers-not-notified", "register-then-walk", "done, stale IOTLB"),
    ("importers-not-notified", "dma-against-zap", "WRONG, stale IOTLB"),
    ("no-flush-after-exported-zap", "delete-against-dma", "WRONG"),
    ("mmio-cached-in-flux", "mmio-generation-wraps", "EMULATE, current MMIO SPTE"),
    ("r1-double-export", "two-exports", "exported-twice"),
    ("r5-unexport-without-flush", "unexport-against-guest", "old after"),
    ("r7-spurious-is-failure", "io-fault-against-vcpu-fault", "False, FIXED"),
    ("r9-mmio-sptes-survive", "mmio-generation-wraps", "EMULATE, current MMIO SPTE"),
    ("r10-nx-toggle-race", "nx-toggle-against-fetch", "FIXED, huge"),
    ("r12-mm-exit-without-flush", "exit-against-dma", "WRONG"),
    ("r14-teardown-order", "hwpt-destroy-against-flush", "freed"),
    ("devtlb-flushed-first", "iotlb-before-devtlb", "done, device TLB"),
    ("r23-range-flush-with-hint", "table-removed-under-dma", "done, partial walk"),
    ("r24-detach-without-drain", "detach-against-page-request", "domain-used-after-free"),
    ("r17-gup-under-slots-lock", "userfault-against-io-fault", "deadlock"),
    ("r22-exported-zap-after-break", "unexport-in-the-gap", "mapped"),
    ("flush-not-handed-on", "two-slots-one-mapping", "owed"),
    ("pml-request-not-awaited", "pml-on-against-write", "lost"),
]

DEEP = {"r22-exported-zap-after-break", "flush-not-handed-on"}
"""What takes more preemptions than can be exhausted: both tasks let the lock go to each other."""


@pytest.mark.parametrize(("breach", "name", "outcome"), BREACHES)
def test_without_the_rule_the_forbidden_outcome_is_reached(
    breach: str, name: str, outcome: str
) -> None:
    variant: Variant = SHIPPED[breach]
    result = run_litmus(LITMUS[name], variants=(variant,))
    assert result.verdict == FAIL
    assert outcome in result.seen(), table([result])
    assert LITMUS[name].grade_of(outcome).grade == FORBIDDEN


@pytest.mark.parametrize(
    ("breach", "name", "outcome"), [each for each in BREACHES if each[0] not in DEEP]
)
def test_it_is_reached_where_states_are_remembered_too(
    breach: str, name: str, outcome: str
) -> None:
    """With one preemption, and with most schedules cut where an earlier one had been."""
    search = PreemptionBounded(1, StateCache())
    result = run_litmus(LITMUS[name], search, SMALL, variants=(SHIPPED[breach],))
    assert search.exhausted
    assert search.states
    assert outcome in result.seen(), table([result])


def test_a_report_that_no_table_knows_fails() -> None:
    result = run_litmus(LITMUS["gifted-reference"], variants=(SHIPPED["table-freed-at-once"],))
    assert "ungraded outcome: free-without-rcu" in result.problems
    assert [report.code for report in result.reports] == ["free-without-rcu"]


@pytest.mark.parametrize(
    "name", [litmus.name for litmus in LITMUS.values() if litmus.family == "locks"]
)
def test_the_steps_inside_the_rwlock_lead_to_the_same_outcomes(name: str) -> None:
    """The rwlock as one step, and the real library explored inside."""
    assert run_litmus(LITMUS[name], granularity="library").seen() == explored(name).seen()


# The runner.


def test_a_program_that_is_right_passes() -> None:
    result = run_litmus(program())
    assert result.verdict == PASS
    assert [(each.outcome, each.grade.grade) for each in result.outcomes] == [
        ("a, b", ACCEPTABLE),
        ("a, c", ACCEPTABLE),
    ]


def test_a_forbidden_outcome_fails_a_correct_program_and_passes_a_broken_one() -> None:
    grades = {"a, b": acceptable("left first"), "a, c": forbidden("never")}
    assert run_litmus(program(grades=grades)).problems == ("forbidden outcome: a, c",)
    assert run_litmus(program(grades=grades, broken=True)).verdict == PASS


def test_a_broken_program_that_breaks_nothing_fails() -> None:
    result = run_litmus(program(broken=True))
    assert result.problems == ("no forbidden outcome was reached, although the rule is left out",)


def test_a_search_that_does_not_end_fails() -> None:
    result = run_litmus(program(), max_executions=1)
    assert result.problems == ("not exhausted after 1 executions",)


def test_an_error_in_a_task_fails() -> None:
    def build(bench: LitmusBench) -> Tasks:
        def task() -> None:
            raise ValueError("nothing works")

        return Tasks(task)

    result = run_litmus(
        program(build=build, grades={"?": acceptable("it did not come to its end")})
    )
    assert result.verdict == FAIL
    assert "nothing works" in result.problems[0]


def test_what_is_looked_at_afterwards_comes_last_and_none_is_left_out() -> None:
    def build(bench: LitmusBench) -> Tasks:
        def silent() -> None:
            return None

        return Tasks(silent, lambda_named, after=lambda: "after")

    def lambda_named() -> str:
        return "task"

    assert run_litmus(program(build=build)).seen() == {"task, after"}


def test_all_of_the_named_programs_are_run_and_handed_over_one_by_one() -> None:
    heard: list[LitmusResult] = []
    results = run_all(["store-buffering", "lost-update"], heard.append)
    assert [result.litmus.name for result in results] == ["store-buffering", "lost-update"]
    assert heard == results


def test_the_table_tells_verdict_counts_grades_and_problems() -> None:
    text = table(
        [run_litmus(program(grades={"a, b": acceptable("left first")})), explored("lost-update")]
    )
    lines = text.splitlines()
    assert lines[0].startswith("FAIL  name")
    assert any("1 x  a, c" in line and UNGRADED in line for line in lines)
    assert any("!! ungraded outcome: a, c" in line for line in lines)
    assert any(
        line.startswith("PASS  lost-update") and "broken on purpose" in line for line in lines
    )
    assert lines[-1] == "2 programs, 6 executions, 1 failed"
