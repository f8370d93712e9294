"""What a selftest may claim, from rows made by hand."""

from __future__ import annotations

import pytest
from attrs import evolve

from stress.results.verdict import Verdict
from stress.scenario.errors import StressError
from stress.selftest.agreement import Agreement
from stress.selftest.attempt import Attempt, Engine, Fired
from stress.selftest.detectors.detectors import SELF_TESTS, SelfTest, run
from stress.selftest.matrix import fired, result, seconds, verdict_line
from stress.selftest.selftest import MatrixRow, Options, Selftest, chosen, judgement_of
from stress.selftest.stored import record_of, selftest_of

O4 = Fired("O4", "refcount", "BUG: put twice", ("O4",))
O6 = Fired("INV", "I8", "BUG: a leaf is left", ("INV", "O6"))


def attempt(
    *reports: Fired,
    killed: bool = False,
    at: float = 0.5,
    errors: tuple[str, ...] = (),
    done: int = 10,
) -> Attempt:
    seen = {"seconds": at, "work": 7, "by": "pct:2"} if killed else {}
    return Attempt("x", "controlled", 1, killed, fired=reports, errors=errors, done=done, **seen)  # type: ignore[arg-type]


def row(
    *attempts: Attempt, kind: str = "mutant", engine: Engine = "controlled", wanted: int = 0
) -> MatrixRow:
    return MatrixRow(
        kind,
        "x",
        engine,
        "explore/move",
        "",
        ("O4",) if kind == "mutant" else (),
        wanted or len(attempts),
        list(attempts),
    )


def verdict(*rows: MatrixRow, left: int = 0) -> Verdict:
    return judgement_of(Selftest(Options(), list(rows), {}, "2026", left=left)).verdict


KILL = attempt(O4, killed=True)


def test_a_mutant_that_dies_passes_and_one_that_lives_fails() -> None:
    assert verdict(row(KILL)) is Verdict.PASS
    assert verdict(row(KILL), row(attempt())) is Verdict.FAIL


def test_a_mutant_that_another_oracle_kills_lives() -> None:
    other = row(attempt(O6))
    assert other.state == "other oracle"
    assert verdict(other) is Verdict.FAIL
    reasons = judgement_of(Selftest(Options(), [other], {}, "2026")).reasons
    assert reasons == ("x, controlled, explore/move: killed only by INV, O6, not by O4",)


def test_one_seed_in_three_is_a_kill_and_says_so() -> None:
    some = row(KILL, attempt(), attempt(O6))
    assert (some.state, result(some), fired(some)) == ("killed", "killed 1/3", "O4 (INV) (O6)")
    assert verdict(some) is Verdict.PASS


@pytest.mark.parametrize(("dead", "expected"), [(4, Verdict.PASS), (3, Verdict.FAIL)])
def test_four_in_five_must_die_on_threads(dead: int, expected: Verdict) -> None:
    rows = [row(KILL if number < dead else attempt(), engine="threads") for number in range(5)]
    assert verdict(*rows) is expected


@pytest.mark.parametrize("kind", ["control", "correct"])
def test_what_must_stay_silent_and_fires_fails(kind: str) -> None:
    assert verdict(row(KILL), row(attempt(), kind=kind)) is Verdict.PASS
    assert verdict(row(KILL), row(attempt(), attempt(O6), kind=kind)) is Verdict.FAIL


def test_silence_of_a_run_in_which_nothing_happened_proves_nothing() -> None:
    assert verdict(row(KILL), row(attempt(done=0), kind="correct")) is Verdict.INCONCLUSIVE


def test_trouble_and_lack_of_time_are_no_pass() -> None:
    assert (
        verdict(row(KILL), row(attempt(errors=("the process ended with exit code 7",))))
        is Verdict.HARNESS_ERROR
    )
    assert verdict(row(KILL), left=3) is Verdict.INCONCLUSIVE
    assert (
        verdict(row(KILL), row(attempt(errors=("boom",))), row(attempt(O6), kind="control"))
        is Verdict.FAIL
    )


def test_times_are_a_median_with_its_range() -> None:
    spread = row(*(attempt(O4, killed=True, at=at) for at in (3.0, 0.25, 1.0)))
    assert seconds(spread) == "1.00 (0.25-3.00) s"
    assert seconds(row(attempt())) == ""


def test_the_last_line_says_everything_that_counts() -> None:
    test = Selftest(Options(), [row(KILL), row(attempt(), kind="control")], {}, "2026", wall_s=12.3)
    assert verdict_line(test) == (
        "PASS  selftest, 12 s: controlled: 1 of 1 mutants killed, median 0.50 s; 0 of 1 silent "
        "cases fired"
    )


def test_mutants_are_chosen_by_name_oracle_and_tag() -> None:
    assert [
        mutant.name for mutant in chosen(Options(names=("put-before-zap", "r1-double-export")))
    ] == [
        "r1-double-export",
        "put-before-zap",
    ]
    assert all("O13" in mutant.expects for mutant in chosen(Options(oracles=("O13",))))
    assert all("seed" in mutant.tags for mutant in chosen(Options(tags=("seed",))))
    for wrong in (
        Options(names=("put-befor-zap",)),
        Options(oracles=("O99",)),
        Options(tags=("seeds",)),
        Options(off=("X",)),
    ):
        with pytest.raises(StressError, match="there is no"):
            chosen(wrong)


@pytest.mark.parametrize(
    ("changes", "expected", "reason"),
    [
        ({}, Verdict.PASS, "engines agree on 2 of 2 scenarios"),
        (
            {"holes": ("point: P1",)},
            Verdict.HARNESS_ERROR,
            "engines on move: point: P1: seen on threads, never under control",
        ),
        ({"errors": ("oops\nmore",)}, Verdict.HARNESS_ERROR, "engines on move: oops"),
        ({"steps": 0}, Verdict.INCONCLUSIVE, "engines on move: threads have done nothing"),
    ],
)
def test_engines_that_do_not_agree_are_no_pass(
    changes: dict[str, object], expected: Verdict, reason: str
) -> None:
    found = Agreement("move", both=3, controlled_only=2, steps=7, schedules=9)
    agreements = (evolve(found, **changes), evolve(found, scenario="recreate"))
    test = Selftest(Options(), [row(KILL)], {}, "2026", agreements=agreements)
    assert judgement_of(test).verdict is expected
    assert reason in verdict_line(test)
    assert selftest_of(record_of(test)).agreements == agreements


def test_a_detector_that_misses_its_injection_fails_the_selftest() -> None:
    deaf = SelfTest("deaf", "O5", "recursive-lock", lambda: ())
    test = Selftest(Options(), [row(KILL)], {}, "2026", detectors=(run(SELF_TESTS[0]), run(deaf)))
    judgement = judgement_of(test)
    assert judgement.verdict is Verdict.FAIL
    assert judgement.reasons == (
        "detector self-test deaf: expected one report of recursive-lock; found []",
    )
    assert "1 of 2 detector self-tests as they must be" in verdict_line(test)
