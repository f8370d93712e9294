"""JUnit XML: a strict schema takes it, its counts add up, and it is green exactly when the verdict
is PASS."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from mmu.numbers.oracles import RULES
from stress.report import cases, junit
from stress.report.cases import MOST_CASES, Suite, SuiteCase
from stress.results.run_record import RunRecord
from stress.results.verdict import Verdict
from stress.selftest.cases import of_selftest
from tests.junit_schema import junit_schema
from tests.records import finding, record
from tests.stored import exploration, selftest

SHORT = evolve(
    record(),
    verdict="INCONCLUSIVE",
    reasons=("vcpu_faults: 3, at least 1000 needed",),
    obligations=(evolve(record().obligations[0], reached=3),),
)
KILLED = evolve(
    record(),
    status="running",
    verdict="INCONCLUSIVE",
    reasons=("the run has not finished",),
    pid=1,
    pid_started=1.0,
)
DIED = evolve(
    record(),
    verdict="HARNESS_ERROR",
    reasons=("observer died",),
    harness_errors=("observer died\nTraceback \x1b[31m",),
)
UNSEEN = evolve(
    record(),
    verdict="INCONCLUSIVE",
    reasons=("none of the expected rules fired: O4",),
    expected_rules=("O4",),
)
STOPPED = evolve(record(findings=1), obligations=(evolve(record().obligations[0], reached=3),))
RUNS = {
    "passed": record(),
    "failed": record(findings=3),
    "short": SHORT,
    "killed": KILLED,
    "died": DIED,
    "unseen": UNSEEN,
    "stopped": STOPPED,
}
SUITES = {
    **{name: cases.of_run(run) for name, run in RUNS.items()},
    "explored": cases.of_exploration(exploration()),
    "explored and failed": cases.of_exploration(exploration(failures=2)),
    "selftest": of_selftest(selftest()),
    "selftest failed": of_selftest(selftest(alive=True)),
}


def parsed(suite: Suite) -> ET.Element:
    text = junit.render(suite)
    junit_schema().validate(text)
    (element,) = ET.fromstring(text)
    return element


def the_case(suite: Suite, start: str) -> SuiteCase:
    (found,) = [case for case in suite.cases if case.name.startswith(start)]
    return found


@pytest.mark.parametrize("suite", SUITES.values(), ids=[*SUITES])
def test_the_schema_takes_it_and_the_counts_add_up(suite: Suite) -> None:
    element = parsed(suite)
    found = element.findall("testcase")
    assert element.get("tests") == str(len(found))
    for name, count in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        assert (
            element.get(count)
            == str(sum(case.find(name) is not None for case in found))
            == str(suite.count(name))
        )
    assert sum(float(case.get("time")) for case in found) == pytest.approx(
        float(element.get("time"))
    )


@pytest.mark.parametrize("suite", SUITES.values(), ids=[*SUITES])
def test_it_is_green_exactly_when_the_verdict_is_pass(suite: Suite) -> None:
    verdict = dict(suite.properties)["verdict"]
    assert (suite.count("failure") + suite.count("error") == 0) == (verdict == Verdict.PASS.name)
    assert (suite.count("failure") > 0) == (verdict == Verdict.FAIL.name)


def test_the_schema_refuses_what_it_does_not_know() -> None:
    text = junit.render(SUITES["passed"])
    for wrong in (
        text.replace('errors="0" ', ""),
        text.replace("T12:00:00", "T12:00:00Z"),
        text.replace("testcase", "test"),
    ):
        assert not junit_schema().is_valid(wrong)


def test_a_failing_rule_holds_the_splat_and_further_findings_have_their_own_cases() -> None:
    element = parsed(SUITES["failed"])
    (rule,) = [
        case for case in element.findall("testcase") if case.get("name", "").startswith("O1 STALE")
    ]
    failure = rule.find("failure")
    assert failure is not None
    assert failure.get("message") == finding(0).headline
    assert failure.get("type") == "stale-tlb"
    assert failure.text == finding(0).splat
    others = [
        case.find("failure").text
        for case in element.findall("testcase")
        if case.get("classname", "").endswith(".findings")
    ]
    assert others == [finding(1).splat, finding(2).splat]


def test_rules_keep_their_cases_whatever_is_found() -> None:
    def names(run: RunRecord) -> list[str]:
        return [case.name for case in cases.of_run(run).cases if case.group == "rules"]

    assert (
        names(record())
        == names(record(findings=2))
        == [f"{rule} {meaning}" for rule, meaning in RULES.items()]
    )


def test_a_rule_that_was_switched_off_or_had_nothing_to_decide_has_not_passed() -> None:
    run = evolve(record(), judged={"O4": 9, "O5": 1, "O6": 0})
    run.scenario["oracles"]["off"] = ["O4"]
    told = {
        rule: (
            the_case(cases.of_run(run), f"{rule} ").outcome,
            the_case(cases.of_run(run), f"{rule} ").message,
        )
        for rule in RULES
    }
    assert told["O4"] == ("skipped", "this rule was switched off")
    assert told["O5"] == ("passed", "")
    assert told["O6"] == told["O7"] == ("skipped", "this rule had nothing to decide")


def test_an_obligation_that_was_not_met_is_an_error_but_after_a_finding_nobody_asks() -> None:
    assert the_case(SUITES["short"], "vcpu_faults at least 1000").outcome == "error"
    assert the_case(SUITES["stopped"], "vcpu_faults at least 1000").outcome == "skipped"
    assert the_case(SUITES["passed"], "vcpu_faults at least 1000").outcome == "passed"


def test_a_killed_run_and_a_harness_error_are_errors_of_the_run_itself() -> None:
    assert "the process was killed" in the_case(SUITES["killed"], "came to its end").text
    assert the_case(SUITES["died"], "came to its end").kind == "HARNESS_ERROR"
    assert "Traceback" in the_case(SUITES["died"], "came to its end").text
    assert the_case(SUITES["unseen"], "O4 fires").outcome == "error"


def test_a_failing_exploration_says_how_to_replay() -> None:
    text = the_case(SUITES["explored and failed"], "O1 STALE").text
    assert "replay: stress replay schedule-1.json" in text
    assert "also: O4" in text
    assert "schedule: tdp1-" in text


def test_thousands_of_findings_are_counted_but_not_all_shown() -> None:
    one = finding(0)
    many = evolve(record(findings=1), findings=(one,) * (MOST_CASES + 11))
    suite = cases.of_run(many)
    assert the_case(suite, "all others").text == "10 more findings are in the JSON file only"
    assert suite.count("failure") == MOST_CASES + 2


def test_a_selftest_has_a_case_for_every_variant_and_engine() -> None:
    assert [(case.group, case.outcome) for case in SUITES["selftest failed"].cases] == [
        ("selftest", "error"),
        ("detectors", "failure"),
        ("detectors", "failure"),
        ("engines", "error"),
        ("engines", "passed"),
        ("mutant.controlled", "failure"),
        ("mutant.threads", "skipped"),
        ("control.controlled", "passed"),
        ("correct.controlled", "passed"),
    ]


@settings(max_examples=40)
@given(st.text(min_size=1), st.text())
def test_any_text_makes_a_valid_document(line: str, text: str) -> None:
    case = SuiteCase("rules", f"O1 {line}", "failure", "code", f"BUG: {line}", text)
    junit_schema().validate(
        junit.render(
            Suite(
                line,
                "2026-11-22T12:00:00Z",
                1.0,
                text,
                (("verdict", "FAIL"), ("command", text)),
                (case,),
            )
        )
    )
