"""The series as posted: each defect is found by its own scenario, all of them together and alone,
and none once mended."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmu.candidates import CANDIDATES
from mmu.numbers.oracles import RULES
from mmu.posted import POSTED, PROFILES
from stress.commands.scenarios import MENDED
from stress.scenario.load import load
from stress.scenario.types import Scenario
from tests.engine import broken_run, counted, run_scenario
from tests.patience import PATIENCE

FOLDER = Path(__file__).parents[2] / "configs" / "rfc-v1"
SCENARIOS = {path.stem.split("-")[0]: path for path in sorted(FOLDER.glob("*.toml"))}
"""By R-number."""
DEFECTS = {f"R{int(name.split('-')[0][1:]):02}": name for name in POSTED}
"""Names of variants by R-number."""
FIGURES = {"R13", "R16"}
"""Properties of the seed that are measured: no variant takes a mend out, because there is none."""
FINDING = [number for number, path in SCENARIOS.items() if load(path).expect.codes]
PATIENT = ("budget.until_met=true", f"budget.cap_s={PATIENCE}")
BRIEF = ("budget.duration_s=0.4", *PATIENT)
"""As long as most defects take to be found, and until the obligations are met. As many schedules
of each are explored in test_exploration_finds."""
SPECIAL = {
    "R14": ("disturbances.delay_s=0.02",),
    "R17": ("limits.stall_s=1.0", "limits.rcu_stall_s=2.0"),
}
"""A longer delay makes R14's window easier to hit on a busy machine; R17 is a deadlock, which is
known as soon as the watchdog says so."""


def fired(number: str, *overrides: str) -> tuple[Scenario, set[str]]:
    """What the scenario of a defect finds: it runs until something expected is among it."""
    scenario = load(SCENARIOS[number], (*BRIEF, *SPECIAL.get(number, ()), *overrides))
    return scenario, {each.code for each in broken_run(scenario).fired}


def test_every_defect_has_its_scenario_and_every_scenario_its_defect() -> None:
    assert set(SCENARIOS) == set(DEFECTS) | FIGURES
    for number, path in SCENARIOS.items():
        named = re.findall(r"vm\.variants=\[\"(.+?)\"\]", path.read_text(encoding="utf-8"))
        assert named == ([DEFECTS[number]] if number in DEFECTS else []), path.name


def test_a_scenario_runs_the_series_as_posted_and_names_what_it_expects() -> None:
    for number, path in SCENARIOS.items():
        scenario = load(path)
        assert scenario.title.startswith(f"R{int(number[1:])} ")
        assert scenario.vm.profile == ("hardened" if number == "R16" else "rfc-v1")
        assert bool(scenario.expect.codes) == (number != "R16")
        assert scenario.vm.variants == ()
        assert scenario.obligations


def test_the_profile_is_all_defects_together_on_a_kernel_as_it_is() -> None:
    assert {"hardened": (), "rfc-v1": (*CANDIDATES.values(), *POSTED.values())} == PROFILES


@pytest.mark.parametrize("name", POSTED)
def test_a_defect_explains_itself(name: str) -> None:
    defect = POSTED[name]
    number = name.split("-", maxsplit=1)[0].upper()
    assert defect.name == name
    assert re.match(rf"{number}\b", defect.title), defect.title
    assert re.search(rf"1\.11 {number}\b", defect.origin)
    assert defect.rule
    assert len(defect.story) >= 2
    assert all(re.match(r"[\w, ]+: ", step) for step in defect.story), "each step says who does it"
    assert defect.parts
    assert defect.expects
    assert set(defect.expects) <= set(RULES)


@pytest.mark.parametrize("number", FINDING)
def test_the_series_as_posted_fails_as_expected(number: str) -> None:
    scenario, codes = fired(number)
    assert codes & set(scenario.expect.codes), (
        f"{sorted(codes) or 'nothing'}, expected one of {scenario.expect.codes}"
    )


@pytest.mark.parametrize("number", [number for number in FINDING if number in DEFECTS])
def test_one_defect_in_the_mended_design_fails_as_expected(number: str) -> None:
    scenario, codes = fired(number, "vm.profile=hardened", f'vm.variants=["{DEFECTS[number]}"]')
    assert codes & set(scenario.expect.codes), (
        f"{sorted(codes) or 'nothing'}, expected one of {scenario.expect.codes}"
    )


@pytest.mark.parametrize("number", [number for number in SCENARIOS if number != "R13"])
def test_the_mended_design_passes(number: str) -> None:
    scenario = load(SCENARIOS[number], (*BRIEF, *MENDED))
    session, outcome = run_scenario(scenario)
    assert not session.owes()
    assert [finding.report.headline for finding in session.findings()] == []
    assert session.errors() == ()
    assert outcome.clean_end


def test_what_the_seed_is_by_nature_no_mend_takes_away() -> None:
    """R13: the zap of everything without yielding is the seed itself."""
    scenario = load(SCENARIOS["R13"], ("budget.settle_s=0.02", *MENDED))
    session, _ = run_scenario(scenario, until=lambda session: bool(session.findings()))
    assert {finding.report.code for finding in session.findings()} == {"unbounded-walk"}


def test_another_policy_bounds_every_zap() -> None:
    """What the scenario of R13 says of itself."""
    scenario = load(SCENARIOS["R13"], ('vm.policy="slot-leaves"', *MENDED))
    session, _ = run_scenario(scenario, until=counted("memslot_deletes"))
    assert [finding.report.headline for finding in session.findings()] == []
