"""The certificate: what it says follows from what is stored, and it never makes a verdict
better."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from mmu.numbers.oracles import RULES
from stress.observe.close_calls import CLOSE_CALLS
from stress.observe.points import POINTS
from stress.observe.possible import possible_points
from stress.observe.rules_judged import JUDGED, judged_by_model
from stress.report import certificate_text, run_console, run_page
from stress.results.bounds import upper_bound
from stress.results.certificate import Certificate, Gap, grade_of
from stress.results.exploration_certificate import certificate_of_exploration
from stress.results.known_kills import Kill, KnownKills
from stress.results.run_record import RUN_FORMAT, RunRecord, Uncertified, completed
from stress.results.verdict import Evidence, Obligation, Verdict, judge
from stress.scenario.counters import COUNTERS
from stress.scenario.errors import ResultError
from stress.scenario.load import load, unstructure
from stress.scenario.types import Oracles, RuleName, Scenario
from stress.search.exploration import ExplorationTally, Failure
from tests.records import certified, finding, record

CONFIGS = Path(__file__).parents[4] / "configs"
QUICK = load(CONFIGS / "quick.toml")
SMALL = load(CONFIGS / "explore" / "delete-vs-dma.toml")
GOLDEN = Path(__file__).parents[3] / "golden" / "certificate.txt"
COUNTED = {
    "vcpu_accesses": 532_738,
    "device_accesses": 9_243,
    "memslot_deletes": 387,
    "memslot_moves": 150,
    "exports": 20,
    "unexports": 20,
    "exported_zaps_mid_walk": 31,
    "stale_faults": 83,
    "rcu_waits_with_reader": 519,
    "frees_after_reader": 392,
    "delays": 9_325,
    "delays_asked": 98_000,
    "stutters": 4,
    "standstills": 4,
    "quiescent_checks": 5,
    "rcu_callbacks": 3_829,
    "roots_freed": 503,
}
KILLS = KnownKills(
    *("2026-11-22", "0.1.0", "2026-11-22T10-00-00Z-selftest", "threads", 60, 58, 19.5, 55),
    here=(
        Kill("put-before-zap", "threads", "quick", 3, 3, 1.25),
        Kill("rare-one", "threads", "quick", 1, 3, None),
    ),
)


def passed(**changes: Any) -> RunRecord:
    """A run of quick.toml in which much has happened."""
    base = evolve(
        record(),
        scenario=unstructure(QUICK),
        counters={name: COUNTED.get(name, 0) for name in COUNTERS},
        obligations=(
            Obligation("exported_zaps_mid_walk", 1, 31),
            Obligation("memslot_deletes", 10, 387),
            Obligation("roots_freed", 5, 503),
        ),
        judged={**judged_by_model({name: COUNTED.get(name, 0) for name in COUNTERS}), "O16": 12},
        points=tuple(name for name in POINTS if name not in ("P8", "P14")),
    )
    return evolve(base, **changes)


def certificate_of(run: RunRecord) -> Certificate:
    """The certificate that a run has before one is stored with it."""
    return certified(run).certified


def text_of(run: RunRecord) -> str:
    return "\n".join(certificate_text.lines(certificate_of(run))) + "\n"


def gaps(certificate: Certificate) -> dict[str, tuple[str, ...]]:
    return {gap.what: gap.names for gap in certificate.gaps}


def test_the_console_s_certificate_to_the_letter() -> None:
    assert text_of(passed(selftest=KILLS)) == GOLDEN.read_text(encoding="utf-8")


def test_it_stands_right_after_the_verdict_in_every_report() -> None:
    run = certified(passed())
    after = run_console.summary(run).split(run_console.verdict_line(run) + "\n")[1]
    assert after == text_of(run)
    page = run_page.render(run)
    assert page.index("<h1") < page.index('id="certificate"') < page.index('id="findings"')
    assert "519" in page


def test_it_is_the_same_after_storing_and_loading() -> None:
    run = certified(passed(selftest=KILLS))
    stored = RUN_FORMAT.read(RUN_FORMAT.text(run), "run.json")
    assert stored.certified == certificate_of(stored) == run.certified


def test_the_stored_certificate_is_the_one_that_is_shown() -> None:
    """Not one that another version would make of the same record."""
    older = evolve(certificate_of(passed()), budget="as an older version put it")
    run = completed(evolve(passed(), certificate=older))
    assert run.certified == older
    assert "as an older version put it" in run_console.summary(run)


def test_a_run_without_a_verdict_has_none_until_it_is_read_back() -> None:
    going_on = evolve(passed(), status="running", certificate=Uncertified())
    assert '"certificate": {}' in RUN_FORMAT.text(going_on)
    stored = RUN_FORMAT.read(RUN_FORMAT.text(going_on), "run.json")
    assert stored == going_on
    with pytest.raises(ValueError, match="no verdict"):
        run_console.summary(stored)
    assert completed(stored).certified == certificate_of(passed())


# A run in which nothing happened.


def test_a_run_in_which_nothing_happened_says_so_and_is_no_pass() -> None:
    demanded = tuple(Obligation(name, needed, 0) for name, needed in QUICK.obligations.items())
    judgement = judge(
        Evidence(0, (), demanded, (), completed=True, clean_end=True, quiescent_checks=1, judged={})
    )
    assert judgement.verdict is Verdict.INCONCLUSIVE
    empty = passed(
        verdict=judgement.verdict.name,
        counters=dict.fromkeys(COUNTERS, 0),
        judged={},
        points=(),
        obligations=demanded,
    )
    certificate = certificate_of(empty)
    assert certificate.operations == certificate.bounds == ()
    missed = gaps(certificate)
    assert len(missed["rules with nothing to decide"]) == len(RULES)
    assert missed["points never reached"] == tuple(possible_points(QUICK, threads=True))
    assert {"vcpu_accesses", "io_faults", "memslot_deletes"} <= set(missed["never happened"])
    text = text_of(empty)
    assert "certifies nothing, as it is INCONCLUSIVE" in text
    assert f"obligations  0 of {len(demanded)} met" in text
    assert "operations   none" in text
    assert "not bounded by this run" in text
    assert "PASS" not in text


@pytest.mark.parametrize("verdict", ["FAIL", "INCONCLUSIVE", "HARNESS_ERROR"])
def test_whatever_it_holds_another_verdict_stays_what_it_is(verdict: str) -> None:
    assert certificate_of(passed(verdict=verdict)).verdict == verdict
    assert "PASS" not in text_of(passed(verdict=verdict))


def test_a_failed_run_bounds_nothing_and_is_short() -> None:
    failed = passed(verdict="FAIL", findings=(finding(0),))
    assert certificate_of(failed).bounds == ()
    assert not {"risk left", "not touched", "would catch"} & {
        name for name, _ in certificate_text.parts(certificate_of(failed))
    }


def test_a_record_without_a_scenario_has_no_certificate() -> None:
    with pytest.raises(ResultError, match="scenario"):
        certificate_of(passed(scenario={"vm": 3}))


# Its parts.


def test_every_rule_says_what_a_judgement_is() -> None:
    assert set(JUDGED) == set(RULES) == set(judged_by_model(dict.fromkeys(COUNTERS, 1)))


@pytest.mark.parametrize(
    ("seen", "rate", "grade"),
    [(0, 0.0, "none"), (1, 99.9, "rare"), (1, 100.0, "common"), (50, 0.5, "rare")],
)
def test_close_calls_are_graded_by_rate(seen: int, rate: float, grade: str) -> None:
    assert grade_of(seen, rate) == grade


def test_a_close_call_that_cannot_happen_is_no_gap() -> None:
    without = unstructure(load(CONFIGS / "quick.toml", ("vm.have_exported_tdp=false",)))
    names = {call.name for call in certificate_of(passed(scenario=without)).close_calls}
    assert names == set(CLOSE_CALLS) - {
        "uses_before_flush",
        "exported_zaps_mid_walk",
        "notified_last",
    }
    assert {call.name for call in certificate_of(passed()).close_calls} <= set(CLOSE_CALLS)


def test_a_race_that_was_won_so_often_bounds_how_often_it_is_lost() -> None:
    (zaps, *_) = certificate_of(passed()).bounds
    assert (zaps.trials, zaps.upper) == (31, upper_bound(31))
    assert all(bound.trials for bound in certificate_of(passed()).bounds)


def test_disturbances_say_how_often_they_took_effect() -> None:
    delays, standstills = certificate_of(passed()).disturbances
    assert (delays.attempts, delays.hits) == (98_000, 9_325)
    assert (standstills.attempts, standstills.hits) == (4, 4)


def test_what_is_switched_off_and_the_build_are_named() -> None:
    quiet = unstructure(
        load(CONFIGS / "quick.toml", ("disturbances.delay_share=0.0", "disturbances.delay_at={}"))
    )
    missed = gaps(certificate_of(passed(scenario=quiet)))
    assert missed["disturbances off"] == (
        "delays",
        "failing attach",
        "failing fd",
        "failing prepare",
    )
    assert "free-threaded" in missed["this build"][0]
    free = evolve(record().environment, gil_enabled=False)
    assert "this build" not in gaps(certificate_of(passed(environment=free)))


def test_a_rule_that_is_off_was_not_judged() -> None:
    blind = evolve(QUICK, oracles=Oracles((RuleName("O1"),)))
    certificate = certificate_of(passed(scenario=unstructure(blind)))
    assert "O1" not in dict(certificate.judged)
    assert gaps(certificate)["rules switched off"] == ("O1",)


def test_without_a_selftest_it_says_how_to_get_one() -> None:
    assert "no selftest among these results: run `stress selftest`" in text_of(passed())


def test_a_selftest_of_other_scenarios_counts_all_mutants() -> None:
    text = certificate_text.would_catch(evolve(KILLS, here=()))
    assert text.startswith(
        "58 of 60 mutants are killed by threads, in at most 19.5 s each, 55 of them within"
    )


# Explorations.


def tally(**changes: Any) -> ExplorationTally:
    counted = {
        "device_accesses": 900,
        "memslot_deletes": 300,
        "exported_zaps_mid_walk": 9,
        "quiescent_checks": 300,
    }
    base: dict[str, Any] = {
        "schedules": 300,
        "steps": 9_000,
        "tasks": 3,
        "longest": 40,
        "counters": counted,
        "judged": {"O1": 900},
    }
    return ExplorationTally(**(base | changes))


def explored(
    strategy: str = "random",
    verdict: Verdict = Verdict.PASS,
    scenario: Scenario = SMALL,
    **changes: Any,
) -> Certificate:
    return certificate_of_exploration(
        scenario, strategy, "300 schedules", tally(**changes), verdict, (), None, 5
    )


def test_random_schedules_bound_the_probability_of_a_failing_one() -> None:
    certificate = explored(unfinished=20, cut=30)
    (bound,) = certificate.bounds
    assert (bound.what, bound.trials, bound.upper) == ("schedules of random", 250, upper_bound(250))
    assert "independently" in certificate.assumption
    assert certificate.proof == ""


def test_each_member_of_a_portfolio_has_its_own_bound() -> None:
    certificate = explored(
        "portfolio",
        members={"pct:2": {"schedules": 100}, "pos": {"schedules": 200}, "surw": {"schedules": 0}},
    )
    assert [(bound.what, bound.trials) for bound in certificate.bounds] == [
        ("schedules of pos", 200),
        ("schedules of pct:2", 100),
    ]
    (guarantee,) = certificate.guarantees
    assert "n = 3 tasks and k = 40 steps" in guarantee
    assert guarantee.endswith("pct:2 44 % or less")


def test_operations_that_were_drawn_are_an_assumption_of_their_own() -> None:
    drawn = load(CONFIGS / "explore" / "two-vcpus.toml")
    assert "5 sets of operations" in explored(scenario=drawn).assumption
    assert "operations" not in explored().assumption


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        ("dpor", "no order of events"),
        ("dfs", "no order of events"),
        ("delay:1", "at most 1 delays"),
        ("preemption", "at most 2 preemptions"),
    ],
)
def test_a_search_that_came_to_its_end_proves(strategy: str, words: str) -> None:
    certificate = explored(strategy, exhausted=True)
    assert certificate.proof.startswith("proved: ")
    assert words in certificate.proof
    assert "sequential consistency" in certificate.proof
    assert "20,000 steps" in certificate.proof
    assert certificate.bounds == ()
    assert "never close" not in gaps(certificate)


@pytest.mark.parametrize(
    ("verdict", "exhausted"), [(Verdict.INCONCLUSIVE, True), (Verdict.PASS, False)]
)
def test_a_search_that_did_not_proves_nothing(verdict: Verdict, exhausted: bool) -> None:
    certificate = explored("dpor", verdict, exhausted=exhausted)
    assert certificate.proof == ""
    assert certificate.bounds == ()
    assert "risk left    not bounded by this run" in "\n".join(certificate_text.lines(certificate))


def test_a_failure_leaves_no_bound() -> None:
    failure: Any = Failure.__new__(Failure)
    assert explored("random", Verdict.FAIL, failures={"O1": failure}).bounds == ()


def test_with_store_buffers_the_certificate_speaks_of_x86() -> None:
    buffered = evolve(SMALL, explore=evolve(SMALL.explore, memory="tso"))
    proof = explored("dpor", scenario=buffered, exhausted=True).proof
    assert "breaks a rule that is judged, under x86-TSO, with store buffers of any depth" in proof
    certificate = explored("pct:2", scenario=buffered)
    (guarantee,) = certificate.guarantees
    assert "n = 3 tasks and store buffers and k = 40 steps" in guarantee
    beyond = "time, and what hardware does beyond x86's store buffers (x86-TSO)"
    assert Gap("this engine", (beyond,)) in certificate.gaps


def test_an_exploration_says_what_it_cannot_show() -> None:
    assert (
        Gap("this engine", ("time, and what hardware does beyond sequential consistency",))
        in explored().gaps
    )
