"""The benchmark of the controlled engine runs its scenario whole: every obligation of a schedule, no finding."""

from __future__ import annotations

from stress.bench import figures
from stress.bench.figures import SMALL
from stress.engines.exploration import ScenarioProgram
from stress.engines.program import Executor
from stress.scenario.load import structure
from stress.search.walk import RandomWalk


def test_the_figure_is_a_ratio_of_what_it_names() -> None:
    figure = figures._controlled_step(1)
    assert figure.ratio > 0
    assert figure.ratio == round(figure.ratio, 3)
    assert abs(figure.numerator_ns / figure.denominator_ns / figure.ratio - 1) < 0.01


def test_the_scenario_that_is_timed_faults_and_deletes() -> None:
    scenario, problems = structure(SMALL, {}, "test")
    assert scenario is not None, problems
    run = Executor(ScenarioProgram("bench", scenario)).execute(RandomWalk(1))
    assert run.completed
    assert not run.reports
    assert not run.errors
    assert run.instance.totals()["memslot_deletes"] == 1
    assert run.instance.totals()["vcpu_faults"] >= 1
