"""The benchmark of the controlled engine runs its scenario whole: every obligation of a schedule,
no finding."""

from __future__ import annotations

import pytest

from stress.engines.carrier_choice import VARIABLE
from stress.engines.program import Executor
from stress.engines.scenario_program import ScenarioProgram
from stress.runs import bench as figures
from stress.runs.bench import SMALL
from stress.scenario.load import structure
from stress.search.random_walk import RandomWalk
from tests.carriers import needs_greenlets


def test_a_figure_is_a_ratio_of_what_it_names(carrier: str) -> None:
    (figure,) = figures._controlled_steps(1)
    assert figure.name == f"controlled step, on {carrier} / bare hand-off"
    assert figure.ratio > 0
    assert figure.ratio == round(figure.ratio, 3)
    assert abs(figure.numerator_ns / figure.denominator_ns / figure.ratio - 1) < 0.01


@needs_greenlets
def test_where_there_are_two_carriers_they_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    names = [figure.name for figure in figures._controlled_steps(1)]
    assert names == [
        "controlled step, on greenlets / bare hand-off",
        "controlled step, on threads / on greenlets",
    ]


def test_the_scenario_that_is_timed_faults_and_deletes() -> None:
    scenario, problems = structure(SMALL, {}, "test")
    assert scenario is not None, problems
    run = Executor(ScenarioProgram("bench", scenario)).execute(RandomWalk(1))
    assert run.completed
    assert not run.reports
    assert not run.errors
    assert run.instance.totals()["memslot_deletes"] == 1
    assert run.instance.totals()["vcpu_faults"] >= 1
