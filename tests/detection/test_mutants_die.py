"""The detectors detect: every shipped broken variant is caught on real threads, by a rule that it
names."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmu.candidates import CANDIDATES
from mmu.posted import POSTED
from stress.mutants import MUTANTS, SHIPPED
from stress.mutants.controls import CONTROLS
from stress.scenario.load import load
from tests.engine import broken_run

BUSTED = Path(__file__).parents[2] / "configs" / "BUSTED"
SCENARIOS = sorted(BUSTED.glob("*.toml"))


def test_every_scenario_that_must_fail_has_its_variant() -> None:
    assert {path.stem for path in SCENARIOS} <= set(MUTANTS)
    for path in SCENARIOS:
        assert load(path).vm.variants == (path.stem,)
        assert load(path).expect.rules == MUTANTS[path.stem].expects


def test_every_variant_explains_itself() -> None:
    for variant in MUTANTS.values():
        assert variant.title
        assert variant.rule
        assert variant.origin
        assert len(variant.story) >= 2


def test_a_variant_is_a_mutant_or_a_defect_as_posted_and_not_both() -> None:
    assert set(MUTANTS) & set(POSTED) == set()
    assert SHIPPED == {**MUTANTS, **CANDIDATES, **POSTED, **CONTROLS}


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_a_broken_variant_is_caught_by_the_rule_it_names(path: Path) -> None:
    scenario = load(path)
    fired: set[str] = set()
    for seed in (1, 2, 3):
        fired |= {each.rule for each in broken_run(scenario, seed).fired}
        if fired & set(scenario.expect.rules):
            return
    pytest.fail(f"{sorted(fired) or 'nothing'} fired, expected one of {scenario.expect.rules}")
