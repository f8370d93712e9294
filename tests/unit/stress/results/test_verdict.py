"""Verdicts: PASS comes from positive evidence only, and nothing masks a finding."""

from __future__ import annotations

import itertools

import pytest
from attrs import evolve

from stress.results.verdict import Evidence, ExitCode, Obligation, Verdict, judge, judged_rules

GOOD = Evidence(
    findings=0,
    harness_errors=(),
    obligations=(Obligation("vcpu_faults", 10, 12),),
    expected_missing=(),
    completed=True,
    clean_end=True,
    quiescent_checks=1,
    judged={"O1": 3, "O2": 0},
    accesses=7,
)


def test_good_evidence_passes() -> None:
    assert judge(GOOD).verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("change", "verdict", "reason"),
    [
        ({"findings": 2}, Verdict.FAIL, "2 findings"),
        ({"harness_errors": ("observer died",)}, Verdict.HARNESS_ERROR, "observer died"),
        (
            {"obligations": (Obligation("io_faults", 5, 4),)},
            Verdict.INCONCLUSIVE,
            "io_faults: 4, at least 5 needed",
        ),
        ({"obligations": ()}, Verdict.INCONCLUSIVE, "no obligations"),
        (
            {"expected_missing": ("O1",)},
            Verdict.INCONCLUSIVE,
            "none of the expected rules fired: O1",
        ),
        ({"completed": False}, Verdict.INCONCLUSIVE, "interrupted"),
        ({"clean_end": False}, Verdict.INCONCLUSIVE, "not every actor"),
        ({"quiescent_checks": 0}, Verdict.INCONCLUSIVE, "never checked"),
        ({"judged": {"O1": 0}}, Verdict.INCONCLUSIVE, "no rule that is on had anything to decide"),
        ({"judged": {}}, Verdict.INCONCLUSIVE, "no rule that is on had anything to decide"),
        ({"accesses": 0}, Verdict.INCONCLUSIVE, "neither a vCPU nor a device accessed memory"),
    ],
)
def test_each_lack_of_evidence_has_its_verdict(
    change: dict[str, object], verdict: Verdict, reason: str
) -> None:
    judgement = judge(evolve(GOOD, **change))
    assert judgement.verdict is verdict
    assert any(reason in text for text in judgement.reasons)


def test_a_pass_says_which_rules_were_off() -> None:
    judgement = judge(evolve(GOOD, off=("O4", "O7")))
    assert judgement.verdict is Verdict.PASS
    assert judgement.reasons == ("all 1 obligations met, no finding; switched off: O4, O7",)
    assert judged_rules(("O1",), GOOD.judged) == {"O2": 0}


def test_a_finding_is_never_masked_and_every_reason_is_kept() -> None:
    judgement = judge(evolve(GOOD, findings=1, harness_errors=("broken",), completed=False))
    assert judgement.verdict is Verdict.FAIL
    assert judgement.reasons[0] == "1 finding"
    assert len(judgement.reasons) == 3


def test_the_worst_verdict_wins_in_any_combination() -> None:
    for one, two in itertools.product(Verdict, repeat=2):
        assert max(one, two) in (one, two)
    assert Verdict.PASS < Verdict.INCONCLUSIVE < Verdict.HARNESS_ERROR < Verdict.FAIL


def test_exit_codes_are_the_public_contract() -> None:
    assert {verdict.name: int(verdict.exit_code) for verdict in Verdict} == {
        "PASS": 0,
        "FAIL": 1,
        "INCONCLUSIVE": 2,
        "HARNESS_ERROR": 3,
    }
    assert (ExitCode.USAGE, ExitCode.REGRESSION, ExitCode.INTERNAL) == (4, 5, 6)
