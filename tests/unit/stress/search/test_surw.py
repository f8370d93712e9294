"""SURW: what is contended is learnt, and all orders of it become about equally likely."""

from __future__ import annotations

from collections import Counter

import pytest

from stress.engines.steps import ADD, LOAD, OWNER_SHIFT, READ_ACQUIRE, SPAWN, STORE
from stress.search.surw import Profile, Surw
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
    assert all(schedules_to_find(program, Surw(seed), 60) <= 60 for seed in range(5))


def test_reports_nothing_where_nothing_is_wrong() -> None:
    assert not any(run.failed for run in runs(PROTOCOL, Surw(1), 60))


def test_equal_seeds_make_equal_schedules() -> None:
    one, two, other = (runs(PROTOCOL, Surw(seed), 20) for seed in (7, 7, 8))
    assert [run.trace for run in one] == [run.trace for run in two]
    assert [run.trace for run in one] != [run.trace for run in other]


def test_every_place_of_one_write_among_nine_is_about_as_likely() -> None:
    places = Counter(
        run.outcome.index(0)
        for run in runs(contended(1, 9), Surw(3), 600)[1:]
        if isinstance(run.outcome, tuple)
    )
    assert set(places) == set(range(10))
    assert min(places.values()) >= 30
    assert max(places.values()) <= 95


def test_a_task_that_is_not_yet_spawned_counts_with_its_parent() -> None:
    """Parent 1, child 3, other 2 writes: by counts alone, the other's first write is the first of
    all in a third."""
    outcomes = [run.outcome for run in runs(SPAWNING, Surw(3), 600)]
    first = Counter(outcome[0] for outcome in outcomes if isinstance(outcome, tuple))
    assert 150 <= first["other"] <= 250


def test_contended_is_what_two_touch_and_one_writes() -> None:
    profile = Profile()
    profile.learn(
        [
            (1, STORE, 10),
            (2, LOAD, 10),
            (2, LOAD, 10),
            (1, LOAD, 11),
            (2, LOAD, 11),
            (1, STORE, 12),
            (2, ADD, 13),
            (1, ADD, 13),
        ]
    )
    assert profile.contended == [10, 13]
    assert profile.on(10) == {1: 1, 2: 2}
    assert profile.total == {1: 2, 2: 3}


def test_a_lock_that_is_only_read_locked_is_not_contended() -> None:
    profile = Profile()
    profile.learn([(1, READ_ACQUIRE, 10), (2, READ_ACQUIRE, 10)])
    assert profile.contended == []


def test_counts_are_averages_over_schedules() -> None:
    profile = Profile()
    profile.learn([(1, STORE, 10), (2, STORE, 10)])
    profile.learn([(1, STORE, 10)] * 3)
    assert profile.on(10) == {1: 2, 2: 0.5}


def test_the_parent_of_a_task_is_learnt() -> None:
    profile = Profile()
    profile.learn([(1, SPAWN, 3 << OWNER_SHIFT)])
    assert profile.parents == {3: 1}


def test_where_nothing_is_contended_it_is_a_random_walk() -> None:
    orders = {
        tuple(task for task, _, _ in run.trace) for run in runs(independent(2, 2), Surw(3), 300)
    }
    assert len(orders) == 20


def test_who_spins_does_not_starve_the_others() -> None:
    assert all(run.completed for run in runs(SPINNING, Surw(2), 40, limit=2000))
