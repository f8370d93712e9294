"""Plain objects under `explore`: races for attributes, variables and items are found, with their
cause, and programs without one are proved."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import pytest

from stress.testing import NothingExplored, ScheduleFailed, Settings, explore, explorer, replay
from stress.testing import program as testing_program
from stress.testing.objects import hooks
from tests.unit.stress.testing import plain_classics, plain_programs
from tests.unit.stress.testing.plain_programs import RIGHT, WRONG, Count
from tests.unit.stress.testing.programs import failure_of, proved, together

EVERYTHING = Settings(exhaustive=True)
assert plain_classics  # its programs are among those below


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_fails_and_can_be_replayed(name: str) -> None:
    with pytest.raises(ScheduleFailed) as failed:
        explore(WRONG[name], EVERYTHING)
    found = failed.value
    with pytest.raises(ScheduleFailed) as again:
        replay(WRONG[name], found.schedule, steps=found.steps)
    assert again.value.signature == found.signature


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_is_proved(name: str) -> None:
    proved(RIGHT[name])


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("attribute", "add1 and add2 both read Count.n = 0 before either wrote it"),
        ("global_variable", "add1 and add2 both read total = 0 before either wrote it"),
        ("closure", "add1 and add2 both read n = 0 before either wrote it"),
        ("dict_item", "add1 and add2 both read counts['n'] = 0 before either wrote it"),
        ("list_item", "add1 and add2 both read counts[0] = 0 before either wrote it"),
        ("set_checked_first", "visit1 and visit2 both read seen[1] = False before either wrote it"),
    ],
)
def test_a_failure_says_its_cause(name: str, cause: str) -> None:
    assert f"\ncause: {cause}" in failure_of(WRONG[name])


def test_steps_show_values() -> None:
    lines = failure_of(plain_programs.attribute).splitlines()
    assert any("load Count.n (0)" in line for line in lines)
    assert any("store Count.n (1 -> 1)" in line for line in lines)
    assert "  Count.n = 1" in lines


def test_two_increments_have_four_orders_of_which_two_are_right() -> None:
    """A reads, B reads, and who writes first: 2 x 2 orders of two loads and two stores that differ
    for anybody; without the loads before both stores, two."""
    seen = []

    def program() -> None:
        count = Count()
        together(count.add, count.add)
        seen.append(count.n)

    assert explore(program, EVERYTHING).classes == 4
    assert set(seen) == {1, 2}


def test_independent_increments_have_one_order() -> None:
    def program() -> None:
        first, second, both = Count(), Count(), Count()
        together(lambda: (first.add(), both.add_locked()), second.add)
        assert (first.n, second.n, both.n) == (1, 1, 1)

    assert proved(program).classes == 1


def test_what_tasks_share_is_put_back_for_every_schedule() -> None:
    count, items, numbers = Count(), [1], {"a": 1}

    def program() -> None:
        def work() -> None:
            with count.lock:
                count.n += 1
                items.append(count.n)
                numbers["b"] = numbers.get("b", 0) + 1

        together(work, work)
        assert (count.n, items, numbers) == (2, [1, 1, 2], {"a": 1, "b": 2})

    assert proved(program).classes == 2
    assert (count.n, items, numbers) == (0, [1], {"a": 1})


def test_notes_that_only_one_task_takes_stay() -> None:
    ends: set[int] = set()

    def program() -> None:
        count = Count()
        together(count.add, count.add)
        ends.add(count.n)

    explore(program, EVERYTHING)
    assert ends == {1, 2}


def test_a_part_that_is_shared_late_begins_the_exploration_anew() -> None:
    """The branch is taken in few schedules; the line that replays it says what was found then."""

    class Data:
        gate = 0
        late = 0

    def climb(step: int) -> None:
        if Data.gate == step:
            Data.gate = step + 1
        if Data.gate == 4:
            Data.late += 1
            assert Data.late == 1

    def program() -> None:
        def one() -> None:
            climb(0)
            climb(2)

        def two() -> None:
            climb(1)
            climb(3)

        together(one, two)

    with pytest.raises(ScheduleFailed) as failed:
        explore(program, EVERYTHING)
    with pytest.raises(ScheduleFailed):
        replay(program, failed.value.schedule, steps=failed.value.steps)


def test_a_program_of_words_is_not_looked_at_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[bool] = []
    kind: Any = type(hooks.hooks(lambda _: False))
    original = kind.want

    def want(self: Any, look_at: hooks.LookAt | None) -> None:
        wanted.append(look_at is not None)
        original(self, look_at)

    monkeypatch.setattr(kind, "want", want)

    def program(sync: Any) -> None:
        word = sync.counter("word")

        def work() -> None:
            for _ in range(3):
                word.fetch_add(1)

        sync.spawn(work)
        sync.spawn(work)

    explored = explore(program, EVERYTHING)
    assert explored.schedules == 20
    assert sum(wanted) <= 5 + 5 + 2, "in the survey, in schedules 1, 2, 4, ..., and when run again"
    assert len(wanted) > 25


def test_iterators_of_the_library_are_not_seen() -> None:
    """What cannot be seen proves nothing, and that is said."""
    numbers = itertools.count()

    def program() -> None:
        together(lambda: next(numbers), lambda: next(numbers))

    with pytest.raises(NothingExplored):
        explore(program, EVERYTHING)


def test_where_plain_objects_cannot_be_seen_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def program(sync: Any) -> None:
        count, word = Count(), sync.counter("word")

        def work() -> None:
            word.fetch_add(1)
            count.n += 1

        sync.spawn(work)
        sync.spawn(work)

    for module in (explorer, testing_program):
        monkeypatch.setattr(module, "unsupported", lambda: "another Python")
    explored = explore(program, EVERYTHING)
    assert explored.schedules == 2
    assert str(explored).endswith("all there are (plain objects are not seen on another Python)")


def test_threads_that_are_no_tasks_are_left_alone() -> None:
    count = Count()
    stop = threading.Event()

    def spin() -> None:
        while not stop.is_set():
            count.add_locked()

    other = threading.Thread(target=spin)
    other.start()
    try:
        assert proved(plain_programs.attribute_with_a_lock).classes == 2
    finally:
        stop.set()
        other.join()
    assert count.n > 0
