"""What explanations, replays and failing tests say of stores that are still in a buffer."""

from __future__ import annotations

import pytest

from stress.engines.controlled import ControlledRuntime
from stress.engines.program import Executor, ProgramTask
from stress.report.explanation import text
from stress.search.explain import explain
from stress.search.exploration import named_steps
from stress.search.in_buffers import unseen_stores
from stress.search.schedule import Follow, Schedule
from stress.testing import (
    ExploredSync,
    Inconclusive,
    ReplayDiverged,
    ScheduleFailed,
    Settings,
    explore,
    replay,
)
from tests.unit.stress.search.programs import Body, Small, broken

LEFT, LEFTS, RIGHT, RIGHTS = 1, 2, 3, 4


class Dekker(Small):
    """Each task announces itself and looks for the other."""

    memory = "tso"


def _dekker(runtime: ControlledRuntime) -> Body:
    x, y = runtime.cell("x", 0), runtime.cell("y", 0)
    inside: list[str] = []
    both: list[bool] = []

    def left() -> None:
        x.value = 1
        if not x.value or not y.value:
            inside.append("left")
        both.append(len(inside) > 1)

    def right() -> None:
        y.value = 1
        if not x.value:
            inside.append("right")
        both.append(len(inside) > 1)

    return Body(
        [ProgramTask("left", left), ProgramTask("right", right)],
        lambda: [broken("O9", "both-inside")] if any(both) else [],
    )


PROGRAM = Dekker("dekker", _dekker)
CHOICES = (LEFT, LEFT, LEFT, RIGHT, RIGHT, RIGHTS, RIGHT, LEFTS, LEFT)


def test_the_steps_of_a_schedule_name_the_buffers() -> None:
    run = Executor(PROGRAM).execute(Follow(CHOICES))
    assert run.failed
    assert named_steps(run) == (
        ("left", "start"),
        ("left", "load x in its own buffer"),
        ("left", "load y"),
        ("right", "start"),
        ("right", "load x"),
        ("right's buffer", "store y"),
        ("right", "mb"),
        ("left's buffer", "store x"),
        ("left", "mb"),
    )
    assert unseen_stores(run) == {4: (7,)}


def test_a_replay_compares_where_loads_read_from() -> None:
    run = Executor(PROGRAM).execute(Follow(CHOICES))
    follow = Follow(CHOICES, steps=named_steps(run))
    again = Executor(PROGRAM).execute(follow)
    assert follow.divergence is None
    assert again.trace == run.trace


def test_an_explanation_says_whose_store_was_still_in_its_buffer() -> None:
    schedule = Schedule.of(Executor(PROGRAM).execute(Follow(CHOICES)))
    explanation = explain(PROGRAM, schedule, tries=4)
    said = [(row.task, row.what) for row in explanation.rows]
    assert said == [("right", "x -> 0; left's store to it is still in its buffer")]
    assert "left's store to it is still in its buffer" in " ".join(text(explanation).split())


def test_leaving_out_a_switch_leaves_the_store_where_it_was() -> None:
    """right is not interrupted by left, and left's drain in the middle is a switch of its own."""
    choices = (LEFT, LEFT, LEFTS, LEFT, LEFT, RIGHT, RIGHT, RIGHTS, RIGHT)
    late = Executor(PROGRAM).execute(Follow(choices[:5]))
    assert not late.failed
    schedule = Schedule.of(Executor(PROGRAM).execute(Follow(CHOICES)))
    switches = explain(PROGRAM, schedule, tries=4).switches
    assert {(each.away_from, each.to) for each in switches} <= {
        ("left", "right"),
        ("right", "right's buffer"),
    }


def _program(sync: ExploredSync):  # type: ignore[no-untyped-def]  # as a user writes it
    x, y = sync.cell("x", 0), sync.cell("y", 0)
    seen = {"left": 1, "right": 1}

    def left() -> None:
        x.value = 1
        seen["left"] = y.value

    def right() -> None:
        y.value = 1
        seen["right"] = x.value

    sync.spawn(left, name="left")
    sync.spawn(right, name="right")
    return lambda: seen != {"left": 0, "right": 0}


def _with_barriers(sync: ExploredSync):  # type: ignore[no-untyped-def]
    x, y = sync.cell("x", 0), sync.cell("y", 0)
    seen = {"left": 1, "right": 1}

    def left() -> None:
        x.value = 1
        sync.mb()
        seen["left"] = y.value

    def right() -> None:
        y.store(1)
        seen["right"] = x.value

    sync.spawn(left, name="left")
    sync.spawn(right, name="right")
    return lambda: seen != {"left": 0, "right": 0}


def test_explore_finds_what_only_a_store_buffer_shows() -> None:
    assert explore(_program, Settings(exhaustive=True)).exhausted
    with pytest.raises(ScheduleFailed) as caught:
        explore(_program, Settings(exhaustive=True, memory="tso"))
    lines = str(caught.value).splitlines()
    (late,) = [line for line in lines if "still in its buffer" in line]
    assert "load x (left's store to x is still in its buffer)" in late
    (drained,) = [line for line in lines if line.rstrip().endswith("store x")]
    source = _program.__code__.co_firstlineno + 5  # x.value = 1
    assert f"line {source}" in drained
    assert any("left's buffer" in line for line in lines)


def test_explore_proves_a_program_with_its_barriers() -> None:
    explored = explore(_with_barriers, Settings(exhaustive=True, memory="tso"))
    assert explored.exhausted
    assert explored.schedules == 3


def test_a_schedule_with_buffers_is_replayed_only_with_buffers() -> None:
    settings = Settings(exhaustive=True, memory="tso")
    with pytest.raises(ScheduleFailed) as caught:
        explore(_program, settings)
    found = caught.value
    with pytest.raises(ScheduleFailed) as again:
        replay(_program, found.schedule, settings, steps=found.steps)
    assert again.value.steps == found.steps
    with pytest.raises(ReplayDiverged):
        replay(_program, found.schedule, steps=found.steps)


def test_too_small_a_budget_proves_nothing() -> None:
    with pytest.raises(Inconclusive):
        explore(_with_barriers, Settings(exhaustive=True, memory="tso", schedules=1))
