"""Systematic search: each schedule once, in the order of the bound, and as many as can be counted
by hand.

A task with n operations has n + 1 events: it starts and does them; its end belongs to the last.
"""

from __future__ import annotations

from collections import Counter
from math import comb, factorial

import pytest

from stress.search.bounded import DelayBounded, DepthFirst, PreemptionBounded, Systematic
from stress.search.happens_before import class_of
from tests.unit.stress.search.programs import (
    BUGS,
    DEADLOCK,
    LOST_UPDATE,
    PROTOCOL,
    SPINNING,
    USE_AFTER_FREE,
    Small,
    contended,
    independent,
    preemptions,
    runs,
    schedules_to_find,
    small_spawning,
)

ENOUGH = 5_000


def interleavings(*steps: int) -> int:
    lengths = [count + 1 for count in steps]
    total = factorial(sum(lengths))
    for length in lengths:
        total //= factorial(length)
    return total


def with_preemptions(events: int, count: int) -> int:
    """Of two tasks: how often the sequence of events can be cut into count + 2 blocks that
    alternate."""
    blocks = count + 2
    return 2 * comb(events - 1, (blocks + 1) // 2 - 1) * comb(events - 1, blocks // 2 - 1)


def all_distinct(program: Small, strategy: Systematic) -> int:
    done = runs(program, strategy, ENOUGH)
    assert strategy.exhausted
    assert len({tuple(run.trace) for run in done}) == len(done)
    return len(done)


@pytest.mark.parametrize("steps", [(0,), (0, 0), (1, 1), (0, 3), (2, 2), (0, 0, 0), (1, 0, 0)])
def test_depth_first_runs_every_interleaving_once(steps: tuple[int, ...]) -> None:
    assert all_distinct(independent(*steps), DepthFirst()) == interleavings(*steps)


@pytest.mark.parametrize("bound", range(6))
def test_as_many_schedules_as_there_are_with_so_many_preemptions(bound: int) -> None:
    done = runs(independent(3, 3), PreemptionBounded(bound), ENOUGH)
    counts = Counter(preemptions(run) for run in done)
    assert counts == {count: with_preemptions(4, count) for count in range(bound + 1)}
    assert [preemptions(run) for run in done] == sorted(preemptions(run) for run in done)
    assert len({tuple(run.trace) for run in done}) == len(done)


@pytest.mark.parametrize(
    ("bound", "expected"), [(0, 1), (1, 1 + 3), (2, 1 + 3 + 6), (3, 16), (4, 19), (5, 20), (6, 20)]
)
def test_as_many_schedules_as_there_are_with_so_many_delays(bound: int, expected: int) -> None:
    """Two tasks of three events: d delays make d + 1 blocks if the second task begins, else d +
    2."""
    assert all_distinct(independent(2, 2), DelayBounded(bound)) == expected


def test_a_delay_passes_over_one_task() -> None:
    """Three tasks: with one delay the second may begin, but not the third."""
    first = {run.trace[0][0] for run in runs(independent(0, 0, 0), DelayBounded(1), ENOUGH)}
    assert first == {1, 2}
    assert {run.trace[0][0] for run in runs(independent(0, 0, 0), DelayBounded(2), ENOUGH)} == {
        1,
        2,
        3,
    }


@pytest.mark.parametrize(
    "program",
    [LOST_UPDATE, DEADLOCK, small_spawning(), independent(2, 1)],
    ids=lambda program: program.name,
)
def test_high_bounds_come_to_every_interleaving(program: Small) -> None:
    total = all_distinct(program, DepthFirst())
    assert total > 2
    assert all_distinct(program, PreemptionBounded(20)) == total
    assert all_distinct(program, DelayBounded(40)) == total


@pytest.mark.parametrize(
    "make", [lambda: PreemptionBounded(2), lambda: DelayBounded(3), DepthFirst]
)
@pytest.mark.parametrize("program", BUGS, ids=lambda program: program.name)
def test_finds_the_bugs(program: Small, make: type[DepthFirst]) -> None:
    assert schedules_to_find(program, make(), 200) <= 200


def test_bugs_need_as_many_preemptions_as_they_need() -> None:
    for program in BUGS:
        assert not any(run.failed for run in runs(program, PreemptionBounded(0), ENOUGH))
        assert any(run.failed for run in runs(program, PreemptionBounded(1), ENOUGH))


@pytest.mark.parametrize("make", [lambda: PreemptionBounded(1), lambda: DelayBounded(2)])
def test_reports_nothing_where_nothing_is_wrong(make: type[DepthFirst]) -> None:
    strategy = make()
    assert not any(run.failed for run in runs(PROTOCOL, strategy, ENOUGH))
    assert strategy.exhausted


def test_classes_of_all_orders_of_writes_to_one_word() -> None:
    assert len({class_of(run) for run in runs(contended(2, 2), DepthFirst(), ENOUGH)}) == comb(4, 2)


def test_two_searches_are_alike() -> None:
    one, two = (runs(USE_AFTER_FREE, PreemptionBounded(1), ENOUGH) for _ in range(2))
    assert [run.trace for run in one] == [run.trace for run in two]


def test_the_level_says_which_bound_is_complete() -> None:
    strategy = PreemptionBounded(3)
    runs(independent(2, 2), strategy, 2)
    assert strategy.level == 1
    assert not strategy.exhausted
    runs(independent(2, 2), strategy, ENOUGH)
    assert strategy.level == 3


def test_a_spin_that_gives_way_is_no_preemption() -> None:
    assert any(run.completed for run in runs(SPINNING, DelayBounded(2), 200, limit=300))


def test_a_program_that_changes_is_explored_all_the_same() -> None:
    strategy = DepthFirst()
    runs(independent(1, 1), strategy, 3)
    assert all(run.completed for run in runs(independent(0), strategy, 3))
