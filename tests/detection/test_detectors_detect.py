"""The detectors detect: what is injected is reported, once, with the right stacks; and a self-test
can fail."""

from __future__ import annotations

import pytest
from attrs import evolve

from mmu.report import Report, section
from stress.selftest.detectors.detectors import SELF_TESTS, SelfTest, judge, run

BY_NAME = {test.name: test for test in SELF_TESTS}


@pytest.mark.parametrize("test", SELF_TESTS, ids=lambda test: test.name)
def test_an_injection_is_reported_as_it_should_be(test: SelfTest) -> None:
    result = run(test)
    assert not result.problems, "\n".join(
        [*result.problems, *(report.render() for report in result.reports)]
    )


def test_every_stall_is_tried_on_both_sides_of_its_limit() -> None:
    twice = {
        name.removesuffix("-twice-the-limit")
        for name in BY_NAME
        if name.endswith("-twice-the-limit")
    }
    half = {
        name.removesuffix("-half-the-limit") for name in BY_NAME if name.endswith("-half-the-limit")
    }
    starved = {
        name.removesuffix("-on-a-starved-machine")
        for name in BY_NAME
        if name.endswith("-on-a-starved-machine")
    }
    assert twice == half
    assert starved == twice - {"walk"}, "a walk is bounded by its steps"
    assert all(
        BY_NAME[f"{name}-twice-the-limit"].code and not BY_NAME[f"{name}-half-the-limit"].code
        for name in twice
    )


def test_every_injection_names_what_its_report_must_show() -> None:
    assert all(test.shows and test.what for test in SELF_TESTS if test.code)


# A self-test that cannot fail would prove nothing.

INVERSION = BY_NAME["lock-inversion"]
GOOD = run(INVERSION).reports[0]


@pytest.mark.parametrize(
    ("reports", "problem"),
    [
        ((), "expected one report of circular-dependency; found []"),
        ((GOOD, evolve(GOOD, subject="again")), "expected one report"),
        ((evolve(GOOD, code="recursive-lock"),), "expected one report"),
        ((evolve(GOOD, rule="O3"),), "reported as O3, expected O5"),
        (
            (evolve(GOOD, sections=GOOD.sections[:1]),),
            "no a_then_b() in a section called 'existing dependency",
        ),
        (
            (
                evolve(
                    GOOD,
                    sections=(section("call trace", ["nobody (nowhere.py:1)"]), *GOOD.sections[1:]),
                ),
            ),
            "no b_then_a() in a section",
        ),
    ],
    ids=[
        "silence",
        "twice",
        "another check",
        "another rule",
        "without the other stack",
        "with the wrong stack",
    ],
)
def test_a_detector_that_reports_otherwise_fails(reports: tuple[Report, ...], problem: str) -> None:
    problems = judge(INVERSION, reports)
    assert problems
    assert problem in problems[0]


def test_a_false_alarm_fails() -> None:
    assert judge(BY_NAME["rcu-stall-half-the-limit"], (GOOD,)) == (
        f"reported without a reason: {GOOD.signature}",
    )
