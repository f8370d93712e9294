"""Candidate bugs of kernels: each is found by its own scenario on real threads, and not once
mended. (The controlled engine's part is in test_exploration_finds.)"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmu.candidates import CANDIDATES
from mmu.kernels import RELEASED
from mmu.numbers.oracles import RULES
from mmu.posted import POSTED
from stress.commands.scenarios import MENDED
from stress.mutants import MUTANTS, SHIPPED
from stress.mutants.controls import CONTROLS
from stress.scenario.load import load
from stress.selftest.registry import all_mutants
from tests.engine import broken_run, run_scenario

FOLDER = Path(__file__).parents[2] / "configs" / "candidates"
MENDED_FOR = "budget.duration_s=0.8"
PATIENT = "budget.duration_s=30"

every_candidate = pytest.mark.parametrize("name", CANDIDATES)


def test_every_candidate_has_its_scenario_and_every_scenario_its_candidate() -> None:
    assert {path.stem for path in FOLDER.glob("*.toml")} == set(CANDIDATES)


def test_a_name_means_one_thing() -> None:
    assert len(SHIPPED) == len(POSTED) + len(CANDIDATES) + len(MUTANTS) + len(CONTROLS)


@every_candidate
def test_a_candidate_explains_itself_and_says_that_it_is_one(name: str) -> None:
    candidate = CANDIDATES[name]
    assert candidate.name == name
    assert candidate.title.startswith("candidate: ")
    assert "not confirmed" in candidate.origin
    assert candidate.rule
    assert len(candidate.story) >= 2
    assert all(re.match(r"[\w, ]+: ", step) for step in candidate.story)
    assert candidate.parts
    assert set(candidate.expects) <= set(RULES)
    assert candidate.expects


@every_candidate
def test_its_scenario_runs_it_alone_and_says_what_was_seen(name: str) -> None:
    path = FOLDER / f"{name}.toml"
    scenario = load(path)
    assert scenario.title.startswith("Candidate: ")
    assert (scenario.vm.profile, scenario.vm.variants) == ("hardened", (name,))
    assert "not confirmed by a maintainer" in " ".join(
        path.read_text(encoding="utf-8").split("\n#")
    )
    assert scenario.expect.codes


@every_candidate
def test_kernels_as_they_were_released_have_it(name: str) -> None:
    assert all(CANDIDATES[name] in variants for variants in RELEASED.values())


@pytest.mark.parametrize("name", [name for name in CANDIDATES if all_mutants()[name].threads])
def test_it_is_found(name: str) -> None:
    scenario = load(FOLDER / f"{name}.toml", (PATIENT,))
    codes: set[str] = set()
    for seed in (1, 2, 3):
        codes |= {each.code for each in broken_run(scenario, seed).fired}
        if codes & set(scenario.expect.codes):
            return
    pytest.fail(f"{sorted(codes) or 'nothing'}, expected one of {scenario.expect.codes}")


@every_candidate
def test_the_mended_design_passes(name: str) -> None:
    session, outcome = run_scenario(load(FOLDER / f"{name}.toml", (MENDED_FOR, *MENDED)))
    assert [finding.report.headline for finding in session.findings()] == []
    assert session.errors() == ()
    assert outcome.clean_end
