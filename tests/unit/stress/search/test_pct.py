"""PCT: priorities decide, change points lower them, the horizon follows the program."""

from __future__ import annotations

import pytest

from stress.engines.program import Executor
from stress.search.pct import Pct
from tests.unit.stress.search.programs import (
    BUGS,
    DEADLOCK,
    PROTOCOL,
    SPAWNING,
    SPINNING,
    Small,
    contended,
    independent,
    padded_lost_update,
    preemptions,
    runs,
    schedules_to_find,
)


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
@pytest.mark.parametrize("program", BUGS, ids=lambda program: program.name)
def test_finds_the_bugs(program: Small, depth: int) -> None:
    assert all(schedules_to_find(program, Pct(seed, depth), 100) <= 100 for seed in range(3))


@pytest.mark.parametrize("depth", [1, 3])
def test_reports_nothing_where_nothing_is_wrong(depth: int) -> None:
    assert not any(run.failed for run in runs(PROTOCOL, Pct(1, depth), 60))


def test_equal_seeds_make_equal_schedules() -> None:
    one, two, other = (runs(PROTOCOL, Pct(seed, 3), 20) for seed in (7, 7, 8))
    assert [run.trace for run in one] == [run.trace for run in two]
    assert [run.trace for run in one] != [run.trace for run in other]


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_each_change_point_costs_one_preemption_at_most(depth: int) -> None:
    seen = {preemptions(run) for run in runs(independent(5, 5, 5), Pct(3, depth), 60)}
    assert max(seen) == depth - 1


def test_depth_one_is_every_order_of_the_whole_tasks() -> None:
    assert {run.outcome for run in runs(contended(2, 2, 2), Pct(1, 1), 60)} == {
        (one, one, two, two, three, three)
        for one in range(3)
        for two in range(3)
        for three in range(3)
        if len({one, two, three}) == 3
    }


def test_the_horizon_is_the_number_of_contested_steps() -> None:
    strategy = Pct(1, 2)
    runs(independent(40, 40), strategy, 30)
    assert 40 <= strategy.horizon <= 84


def test_the_horizon_falls_when_schedules_get_shorter() -> None:
    strategy = Pct(1, 2)
    runs(independent(200, 200), strategy, 3)
    assert strategy.horizon >= 200
    runs(independent(3, 3), strategy, 60)
    assert strategy.horizon <= 10


def test_the_horizon_does_not_learn_from_schedules_that_broke_off() -> None:
    strategy = Pct(1, 3)
    runs(independent(100, 100), strategy, 3)
    executor = Executor(DEADLOCK)
    broke_off = 0
    for _ in range(20):
        before = strategy.horizon
        completed = executor.execute(strategy).completed
        broke_off += not completed
        assert (strategy.horizon < before) == completed
    assert broke_off


def test_a_bug_between_much_else_is_found() -> None:
    """One change point among 4 x 50 steps has to fall between two neighbours: two in some 200."""
    found = [schedules_to_find(padded_lost_update(50), Pct(seed, 2), 1500) for seed in range(3)]
    assert sorted(found)[1] <= 1000


@pytest.mark.parametrize("depth", [1, 3])
def test_who_spins_gives_way(depth: int) -> None:
    assert all(
        run.completed and not run.limit_hit for run in runs(SPINNING, Pct(2, depth), 40, limit=300)
    )


def test_tasks_that_are_spawned_later_get_priorities_of_their_own() -> None:
    outcomes = {run.outcome for run in runs(SPAWNING, Pct(4, 1), 60)}
    assert {outcome[0] for outcome in outcomes if isinstance(outcome, tuple)} == {
        "parent",
        "child",
        "other",
    }


@pytest.mark.parametrize("depth", [0, 6])
def test_other_depths_are_refused(depth: int) -> None:
    with pytest.raises(ValueError, match="1 to 5"):
        Pct(1, depth)
