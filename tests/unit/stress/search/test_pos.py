"""POS: what races is drawn anew, what does not keeps its priority."""

from __future__ import annotations

from collections import Counter

import pytest

from stress.engines.steps import (
    ACQUIRE,
    ADD,
    ENDING,
    LOAD,
    READ_ACQUIRE,
    READ_RELEASE,
    RELEASE,
    RMW,
    STORE,
    WAIT,
    YIELD,
)
from stress.search.pos import CONFLICTS, Pos
from tests.unit.stress.search.programs import (
    BUGS,
    PROTOCOL,
    SPAWNING,
    SPINNING,
    Small,
    contended,
    independent,
    runs,
    schedules_to_find,
)


@pytest.mark.parametrize("program", BUGS, ids=lambda program: program.name)
def test_finds_the_bugs(program: Small) -> None:
    assert all(schedules_to_find(program, Pos(seed), 60) <= 60 for seed in range(5))


def test_reports_nothing_where_nothing_is_wrong() -> None:
    assert not any(run.failed for run in runs(PROTOCOL, Pos(1), 60))


def test_equal_seeds_make_equal_schedules() -> None:
    one, two, other = (runs(PROTOCOL, Pos(seed), 20) for seed in (7, 7, 8))
    assert [run.trace for run in one] == [run.trace for run in two]
    assert [run.trace for run in one] != [run.trace for run in other]


@pytest.mark.parametrize(
    "pair",
    [
        (LOAD, LOAD),
        (LOAD, WAIT),
        (ADD, ADD),
        (READ_ACQUIRE, READ_RELEASE),
        (YIELD, STORE),
        (ENDING, LOAD),
    ],
)
def test_what_commutes(pair: tuple[int, int]) -> None:
    one, other = pair
    assert not CONFLICTS[one][other]
    assert not CONFLICTS[other][one]


@pytest.mark.parametrize(
    "pair",
    [
        (LOAD, STORE),
        (ADD, LOAD),
        (ADD, RMW),
        (STORE, STORE),
        (ACQUIRE, ACQUIRE),
        (ACQUIRE, READ_RELEASE),
    ],
)
def test_what_conflicts(pair: tuple[int, int]) -> None:
    one, other = pair
    assert CONFLICTS[one][other]
    assert CONFLICTS[other][one]
    assert CONFLICTS[RELEASE][RELEASE]


def test_a_task_that_waits_long_is_not_more_likely_to_lose_the_next_race() -> None:
    """One write against ten: it races with each, so its place is where a coin comes up heads, which
    is soon."""
    places = Counter(
        run.outcome.index(0)
        for run in runs(contended(1, 10), Pos(2), 400)
        if isinstance(run.outcome, tuple)
    )
    assert 120 <= places[0] <= 280
    assert places[0] > places[1] > places[3]


def test_what_nobody_races_with_keeps_its_priority() -> None:
    """One write against ten that it does not race with: it is as likely to come late as early."""
    late = sum(
        [task for task, _, _ in run.trace].index(1) >= 9
        for run in runs(independent(0, 10), Pos(2), 400)
    )
    assert late >= 20


def test_who_spins_does_not_starve_the_others() -> None:
    assert all(run.completed for run in runs(SPINNING, Pos(2), 40, limit=2000))


def test_spawned_tasks_take_part() -> None:
    outcomes = {run.outcome for run in runs(SPAWNING, Pos(4), 60)}
    assert {outcome[0] for outcome in outcomes if isinstance(outcome, tuple)} == {
        "parent",
        "child",
        "other",
    }
