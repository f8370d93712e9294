"""The portfolio: budget follows what is new, and nobody starves."""

from __future__ import annotations

import pytest

from stress.engines.program import Run
from stress.engines.scheduler import Picker, Scheduler
from stress.search.bounded import DepthFirst, PreemptionBounded
from stress.search.happens_before import class_of
from stress.search.portfolio import Portfolio
from stress.search.random_walk import RandomWalk
from tests.unit.stress.search.programs import (
    BUGS,
    LOST_UPDATE,
    PROTOCOL,
    Small,
    contended,
    independent,
    runs,
    schedules_to_find,
)


class Rut:
    """Always the same schedule."""

    name = "rut"
    exhausted = False

    def begin(self, scheduler: Scheduler) -> Picker:
        return scheduler.first

    def end(self, run: Run) -> None:
        """Nothing is learnt."""


@pytest.mark.parametrize("program", BUGS, ids=lambda program: program.name)
def test_finds_the_bugs(program: Small) -> None:
    assert all(schedules_to_find(program, Portfolio(seed, class_of), 60) <= 60 for seed in range(3))


def test_reports_nothing_where_nothing_is_wrong() -> None:
    assert not any(run.failed for run in runs(PROTOCOL, Portfolio(1, class_of), 100))


def test_equal_seeds_make_equal_schedules() -> None:
    one, two, other = (runs(PROTOCOL, Portfolio(seed, class_of), 60) for seed in (7, 7, 8))
    assert [run.trace for run in one] == [run.trace for run in two]
    assert [run.trace for run in one] != [run.trace for run in other]


@pytest.mark.parametrize(("sweeps", "first"), [(False, []), (True, ["sweep:1"])])
def test_the_members_are_the_strategies_that_draw(sweeps: bool, first: list[str]) -> None:
    names = [share.name for share in Portfolio(1, class_of, sweeps=sweeps).report()]
    assert names == [*first, "random", "pct:1", "pct:2", "pct:3", "pct:4", "pos", "surw"]


def test_the_budget_moves_to_who_finds_new_classes_and_nobody_starves() -> None:
    portfolio = Portfolio(3, class_of, [Rut(), RandomWalk(1)])
    done = runs(contended(4, 4, 4), portfolio, 400)
    rut, walk = portfolio.report()
    assert rut.schedules + walk.schedules == len(done) == 400
    assert 20 <= rut.schedules <= 120
    assert rut.classes <= 1
    assert rut.classes + walk.classes == len({class_of(run) for run in done})


def test_a_new_failure_is_credited_once() -> None:
    portfolio = Portfolio(3, class_of)
    runs(LOST_UPDATE, portfolio, 100)
    assert sum(share.failures for share in portfolio.report()) == 1


def test_members_that_are_exhausted_are_left_out() -> None:
    portfolio = Portfolio(3, class_of, [PreemptionBounded(0), RandomWalk(1)])
    runs(independent(1, 1), portfolio, 60)
    assert [share.schedules for share in portfolio.report()] == [2, 58]


def test_it_is_exhausted_when_all_members_are() -> None:
    portfolio = Portfolio(3, class_of, [PreemptionBounded(0), DepthFirst()])
    assert len(runs(independent(2, 2), portfolio, 100)) == 22
    assert portfolio.exhausted


def test_what_one_switch_of_tasks_breaks_is_found_whatever_the_seed() -> None:
    """The sweep has every fourth schedule, so all of it fits into the first hundred."""
    for seed in range(20):
        portfolio = Portfolio(seed, class_of, [Rut()], sweeps=True)
        assert schedules_to_find(LOST_UPDATE, portfolio, 100) <= 100


def test_a_sweep_that_has_ended_leaves_the_budget_to_the_others() -> None:
    portfolio = Portfolio(1, class_of, [RandomWalk(1)], sweeps=True)
    runs(independent(1, 1), portfolio, 60)
    sweep, walk = portfolio.report()
    assert 2 <= sweep.schedules < 30 < walk.schedules
