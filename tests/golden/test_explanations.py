"""Golden explanations: what `stress explain` says about failing schedules of broken variants, to
the letter.

Beside each text lies the schedule that it explains. With REWRITE_GOLDEN=texts in the environment
the texts are written anew, with REWRITE_GOLDEN=schedules the schedules are looked for anew before;
a changed text is a decision all the same.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from attrs import evolve, frozen

from mmu.numbers.oracles import RULES
from stress.engines.carrier import pinned
from stress.engines.scenario_program import ScenarioProgram
from stress.report.explanation import WIDTH, text
from stress.results import schedule_file
from stress.results.schedule_file import StoredSchedule, stored
from stress.runs.replay import explain_stored
from stress.scenario.load import load
from stress.search.exploration import Exploration, SearchBudget
from stress.search.minimise import Minimiser
from stress.search.strategies import strategy_for

HERE = Path(__file__).parent / "explanations"
EXPLORE = Path(__file__).parents[2] / "configs" / "explore"
REWRITE = os.environ.get("REWRITE_GOLDEN", "")
TRIES = 4


@frozen
class Case:
    """How a failing schedule of a variant is found: in which scenario, by which strategy, and
    whether it is then made smaller."""

    scenario: str
    strategy: str = "portfolio"
    minimised: bool = True


CASES = {
    "stale-check-skipped": Case("fault-vs-delete"),
    "srcu-wait-skipped": Case("fault-vs-delete"),
    "request-check-skipped": Case("fault-vs-delete"),
    "no-flush-after-exported-zap": Case("delete-vs-dma"),
    "importers-not-notified": Case("delete-vs-dma"),
    "exported-root-invalidated": Case("delete-vs-dma"),
    "rcu-section-dropped": Case("delete-vs-dma"),
    "r14-teardown-order": Case("detach-vs-delete"),
    "table-freed-at-once": Case("fault-vs-delete", "preemption:1", minimised=False),
}


def look_for(variant: str, case: Case) -> StoredSchedule:
    """The first failing schedule that an exploration meets, minimised. The steps are left out: the
    schedule says them all."""
    scenario = load(EXPLORE / f"{case.scenario}.toml", [f'vm.variants=["{variant}"]'])
    with pinned():
        tally = Exploration(
            ScenarioProgram(case.scenario, scenario), strategy_for(case.strategy, 1)
        ).run(SearchBudget(3000, 60))
        failure = next(iter(tally.failures.values()))
        if case.minimised:
            minimiser = Minimiser(
                case.scenario, (), failure.report.signature, predicted=failure.predicted
            )
            smallest = minimiser.minimise(scenario, failure.schedule)
            assert smallest is not None
            scenario, failure = smallest.scenario, smallest.failure
    return evolve(stored(case.scenario, scenario, (), failure), steps=())


def normal(explained: str) -> str:
    """An explanation without line numbers."""
    return re.sub(r"\.py:\d+", ".py:N", explained)


@pytest.mark.parametrize("variant", CASES)
def test_the_explanation_is_as_it_was(variant: str) -> None:
    schedule, golden = HERE / f"{variant}.json", HERE / f"{variant}.txt"
    if REWRITE == "schedules":
        schedule.write_text(look_for(variant, CASES[variant]).text(), encoding="utf-8")
    explained = normal(text(explain_stored(schedule_file.read(schedule), tries=TRIES)))
    if REWRITE:
        golden.write_text(explained, encoding="utf-8")
    assert explained == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("variant", CASES)
def test_it_names_the_rule_and_not_the_variant(variant: str) -> None:
    page = (HERE / f"{variant}.txt").read_text(encoding="utf-8")
    rule = schedule_file.read(HERE / f"{variant}.json").signatures[0].split("/")[0]
    assert f"rule       {rule} {RULES[rule].split(':')[0]}" in page
    assert variant not in page
    assert variant.replace("-", "_") not in page


@pytest.mark.parametrize("variant", CASES)
def test_it_fits_a_console(variant: str) -> None:
    page = (HERE / f"{variant}.txt").read_text(encoding="utf-8")
    assert page.isascii()
    assert max(map(len, page.splitlines())) <= WIDTH
    assert len(page.splitlines()) < 250


def test_every_file_is_expected() -> None:
    assert {path.stem for path in HERE.iterdir()} == set(CASES)
