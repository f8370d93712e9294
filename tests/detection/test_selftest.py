"""The selftest itself: a dozen mutants die on both engines, a rule taken away shows as a hole,
wolves are not cried."""

from __future__ import annotations

import json
import re

import pytest

from mmu.export.policies import POLICIES
from mmu.numbers.oracles import RULES
from stress.mutants import MUTANTS
from stress.mutants.case import Case, Control, Mutant
from stress.mutants.controls import CONTROLS
from stress.results.verdict import Verdict
from stress.selftest import matrix, page, selftest
from stress.selftest.registry import all_mutants, entry, scenario_of, without_variants
from stress.selftest.selftest import Options, judgement_of, run
from stress.selftest.stored import SELFTEST_FORMAT, record_of
from tests.patience import PATIENCE

DOZEN = (
    "r1-double-export",
    "r5-unexport-without-flush",
    "r9-mmio-sptes-survive",
    "r10-nx-toggle-race",
    "r19-device-writes-not-logged",
    "exported-root-invalidated",
    "no-flush-after-exported-zap",
    "importers-not-notified",
    "put-before-zap",
    "srcu-wait-skipped",
    "stale-check-skipped",
    "yield-in-exported-zap",
)


def test_a_dozen_mutants_die_on_both_engines() -> None:
    test = run(Options(names=DOZEN, seeds=1, controlled_s=PATIENCE, threads_s=PATIENCE))
    assert [(row.name, row.engine, row.state) for row in test.rows if row.state != "killed"] == []
    assert len(test.rows) == 2 * len(DOZEN)
    assert judgement_of(test).verdict is Verdict.PASS
    assert all(row.seconds and row.work and row.found_by() for row in test.rows)


def test_without_an_oracle_the_matrix_shows_the_hole() -> None:
    """Only O17 sees a page that is published before it is on its list."""
    test = run(
        Options(
            names=("r3-publish-before-init",),
            engines=("controlled",),
            seeds=1,
            controlled_s=1.0,
            off=("O17",),
        )
    )
    assert [row.state for row in test.rows] == ["ALIVE"]
    judgement = judgement_of(test)
    assert judgement.verdict is Verdict.FAIL
    assert judgement.reasons == ("r3-publish-before-init, controlled, explore/attach-fails: lives",)
    assert "without O17: 1 mutants that nothing else catches: r3-publish-before-init" in "\n".join(
        matrix.holes(test)
    )


def test_without_an_oracle_that_has_company_there_is_no_hole() -> None:
    options = Options(
        names=("double-put-of-invalid-root",),
        engines=("controlled",),
        seeds=1,
        controlled_s=PATIENCE,
        off=("O17",),
    )
    test = run(options)
    assert [row.state for row in test.rows] == ["killed"]
    assert list(matrix.holes(test)) == ["without O17: no mutant needs it"]


def test_a_kill_by_an_oracle_that_is_not_expected_is_shown_as_such() -> None:
    """Without O4 a double put is still seen: the page is touched after it was freed (O2)."""
    test = run(
        Options(
            names=("double-put-of-invalid-root",),
            engines=("controlled",),
            seeds=1,
            controlled_s=2.0,
            off=("O4", "INV"),
        )
    )
    (row,) = test.rows
    assert row.state == "other oracle"
    assert matrix.fired(row).startswith("(")
    assert judgement_of(test).verdict is Verdict.FAIL


def test_the_correct_model_stays_silent_under_every_policy_in_a_short_selftest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = selftest.CORRECT_CASES[:3]
    monkeypatch.setattr(selftest, "CORRECT_CASES", few)
    test = run(
        Options(
            engines=("controlled",),
            correct_s=0.1,
            first_seed=7,
            mutants=False,
            controls=False,
            detectors=False,
        )
    )
    sound = {name for name, policy in POLICIES.items() if not policy.expects}
    assert {(row.scenario, row.name) for row in test.rows} == {
        (f"explore/{name}", policy) for name in few for policy in sound
    }
    assert {row.kind for row in test.rows} == {"correct"}
    assert {row.state for row in test.rows} == {"silent"}
    assert sum(row.done for row in test.rows) >= len(test.rows)


def test_the_matrix_is_the_same_in_every_form() -> None:
    test = run(
        Options(
            names=("r1-double-export",), engines=("controlled",), seeds=2, controlled_s=PATIENCE
        )
    )
    data = json.loads(SELFTEST_FORMAT.text(record_of(test)))
    (row,) = data["mutants"]
    assert (row["name"], row["engine"], row["killed"], row["of"]) == (
        "r1-double-export",
        "controlled",
        2,
        2,
    )
    assert row["fired"]["O12"] == 2
    assert data["verdict"] == "PASS"
    text = matrix.markdown(test)
    assert "| r1-double-export | controlled | killed | O12 |" in text
    assert "| mutant | engine | O10 | O12 |" in text
    assert "| r1-double-export | controlled |  | **2** |" in text


@pytest.mark.parametrize("name", [*all_mutants()])
def test_every_mutant_is_complete_and_its_cases_can_be_loaded(name: str) -> None:
    mutant = all_mutants()[name]
    assert isinstance(mutant, Mutant)
    assert mutant.name == name
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", name)
    assert set(mutant.expects) <= set(RULES)
    assert mutant.title
    assert mutant.rule
    assert mutant.origin
    assert mutant.tags
    assert len(mutant.story) >= 2
    assert all(": " in step for step in mutant.story), "each step says who does it"
    for case in (mutant.controlled, mutant.threads):
        if case is not None:
            scenario = scenario_of(case, mutant)
            assert scenario.vm.variants == (name,)
            assert scenario.expect.rules == mutant.expects
            assert without_variants(case).vm.variants == ()
    assert mutant.controlled.scenario.startswith("explore/")


@pytest.mark.parametrize("name", [*CONTROLS])
def test_every_inverted_control_is_complete(name: str) -> None:
    control = CONTROLS[name]
    assert isinstance(control, Control)
    assert (control.name, control.expects) == (name, ())
    assert control.looks_wrong
    assert control.right_because
    assert {"explore", "threads"} == {
        "explore" if case.scenario.startswith("explore/") else "threads" for case in control.tried
    }
    for case in control.tried:
        assert scenario_of(case, control).vm.variants == (name,)


def test_a_mutant_must_say_what_kills_it_and_why_threads_cannot() -> None:
    given = MUTANTS["put-before-zap"]
    facts = {
        "name": "x",
        "title": "x",
        "parts": given.parts,
        "confidence": "V",
        "tags": ("x",),
        "controlled": Case("explore/move"),
    }
    with pytest.raises(ValueError, match="expects no rule"):
        Mutant(**facts, threads=Case("quick"))
    with pytest.raises(ValueError, match="exactly one of threads and threads_cannot"):
        Mutant(**facts, expects=("O4",), threads=None)
    with pytest.raises(ValueError, match="exactly one of threads and threads_cannot"):
        Mutant(**facts, expects=("O4",), threads=Case("quick"), threads_cannot="too rare")
    with pytest.raises(ValueError, match="is tried on nothing"):
        Control(
            name="x", title="x", parts=given.parts, looks_wrong="x", right_because="x", tried=()
        )


def test_the_page_of_a_mutant_has_everything_a_reader_needs() -> None:
    text = "\n".join(page.page("put-before-zap")).replace(" \\\n     ", "")
    for wanted in (
        "origin\n  B21 (22b94c4b63eb)",
        "rule broken\n",
        "smallest interleaving\n  1  memslot worker  ",
        "rule O4 (last-put)",
    ):
        assert wanted in text
    assert (
        "stress explore --config configs/explore/obsolete-root.toml --set "
        "'vm.variants=[\"put-before-zap\"]'" in text
    )
    assert (
        '22b94c4b63eb ("KVM: x86/mmu: Zap invalidated roots via asynchronous worker") v5.18' in text
    )
    assert "What happened ---" in text
    assert entry("put-before-zap").parts[0].__name__ in text
