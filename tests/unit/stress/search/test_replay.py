"""Replay: the same steps again, and where it stops when they cannot be the same."""

from __future__ import annotations

import pytest

from stress.engines.controlled import ControlledRuntime
from stress.engines.program import Executor, ProgramTask, Run
from stress.search.bounded import DepthFirst
from stress.search.exploration import named_steps
from stress.search.random_walk import RandomWalk
from stress.search.replay import Replayed, replay
from stress.search.schedule import Divergence, Schedule
from stress.search.turns import FollowTurns, Turn, turns_of
from tests.unit.stress.search.programs import (
    BUGS,
    LOST_UPDATE,
    PROTOCOL,
    SPAWNING,
    SPINNING,
    Body,
    Small,
    contended,
    independent,
    padded_lost_update,
    preemptions,
)

ALL = [*BUGS, PROTOCOL, SPINNING, SPAWNING]


def recorded(program: Small, seed: int = 1) -> tuple[Run, Schedule, tuple[tuple[str, str], ...]]:
    run = Executor(program).execute(RandomWalk(seed))
    return run, Schedule.of(run), named_steps(run)


def diverged(replayed: Replayed) -> Divergence:
    assert replayed.divergence is not None
    return replayed.divergence


@pytest.mark.parametrize("program", ALL, ids=lambda program: program.name)
@pytest.mark.parametrize("seed", range(4))
def test_a_replay_does_the_same_steps_and_finds_the_same(program: Small, seed: int) -> None:
    run, schedule, steps = recorded(program, seed)
    for names in (steps, ()):
        replayed = replay(program, Schedule.decode(schedule.encode()), steps=names)
        assert replayed.divergence is None
        assert replayed.run.trace == run.trace
        assert named_steps(replayed.run) == steps
        assert replayed.signatures == tuple(report.signature for report in run.reports)
        assert replayed.run.outcome == run.outcome


def test_a_task_that_is_over_cannot_go_on() -> None:
    found = diverged(replay(independent(1, 3), Schedule(0, (1,) * 5 + (2,), 0)))
    assert (found.step, found.expected, found.found) == (2, "task0 to go on", "task0: it is over")
    assert "at step 2" in str(found)
    assert "has changed since" in str(found)


def _locked(runtime: ControlledRuntime) -> Body:
    lock = runtime.lock("lock")

    def work() -> None:
        lock.acquire()
        lock.release()

    return Body([ProgramTask("one", work), ProgramTask("two", work)])


LOCKED = Small("locked", _locked)


def test_a_task_that_is_blocked_cannot_go_on() -> None:
    found = diverged(replay(LOCKED, Schedule(0, (1, 1, 2, 2), 0)))
    assert (found.step, found.expected, found.found) == (
        3,
        "two to go on",
        "two: acquire lock, which is blocked",
    )


def test_a_task_that_there_is_not_cannot_go_on() -> None:
    found = diverged(replay(LOST_UPDATE, Schedule(0, (1, 5), 0)))
    assert (found.step, found.expected, found.found) == (1, "task 5 to go on", "only 2 tasks")


def test_another_operation_is_named_with_the_one_that_was_recorded() -> None:
    _, schedule, steps = recorded(padded_lost_update(1))
    found = diverged(replay(padded_lost_update(2), schedule, steps=steps))
    assert found.step < len(steps)
    assert found.expected == ": ".join(steps[found.step])
    assert found.found != found.expected
    assert found.found.startswith(f"{steps[found.step][0]}: ")


def test_another_name_of_a_task_is_another_step() -> None:
    _, schedule, steps = recorded(LOST_UPDATE)
    renamed = [steps[0], *(("someone", operation) for _, operation in steps[1:])]
    assert diverged(replay(LOST_UPDATE, schedule, steps=renamed)).step == 1


def test_without_names_the_sum_tells_that_steps_were_others() -> None:
    _, schedule, _ = recorded(contended(2, 2))
    found = diverged(replay(independent(2, 2), schedule))
    assert found.step == len(schedule.choices)
    assert found.found == "as many steps, but other ones"


@pytest.mark.parametrize("kept", [0, 3, 5])
def test_a_schedule_that_ends_too_soon_has_another_sum(kept: int) -> None:
    run, schedule, _ = recorded(LOST_UPDATE, 2)
    short = Schedule(schedule.seed, schedule.choices[:kept], 0)
    found = diverged(replay(LOST_UPDATE, short))
    assert found.expected == f"{kept} steps as recorded"
    assert found.found == f"{len(run.trace)} steps"


def test_after_until_nothing_is_compared() -> None:
    _, schedule, steps = recorded(LOST_UPDATE)
    other = [*steps[:2], *[("nobody", "nothing")] * (len(steps) - 2)]
    assert replay(LOST_UPDATE, schedule, steps=other, until=2).divergence is None
    assert diverged(replay(LOST_UPDATE, schedule, steps=other, until=3)).step == 2


def test_after_until_another_strategy_goes_on() -> None:
    run, schedule, steps = recorded(PROTOCOL)
    branches = [
        replay(PROTOCOL, schedule, steps=steps, until=6, then=RandomWalk(seed)).run.trace
        for seed in range(8)
    ]
    assert all(trace[:6] == run.trace[:6] for trace in branches)
    assert len({tuple(trace) for trace in branches}) > 3


def test_after_until_the_default_goes_on_with_the_running_task() -> None:
    _, schedule, _ = recorded(contended(3, 3))
    trace = replay(contended(3, 3), schedule, until=1).run.trace
    assert preemptions(replay(contended(3, 3), schedule, until=1).run) == 0
    assert trace[0][0] == schedule.choices[0]


def test_until_behind_the_end_is_the_end() -> None:
    run, schedule, steps = recorded(PROTOCOL)
    assert replay(PROTOCOL, schedule, steps=steps, until=10_000).run.trace == run.trace


def test_a_compare_exchange_that_failed_is_recorded_as_a_load_and_still_the_same() -> None:
    def make(runtime: ControlledRuntime) -> Body:
        word = runtime.cell("word", 0)
        seen: list[int] = []
        return Body(
            [ProgramTask(name, lambda: seen.append(word.cmpxchg(0, 1))) for name in ("one", "two")],
            tuple,
            lambda: tuple(seen),
        )

    program = Small("compare", make)
    executor, search = Executor(program), DepthFirst()
    runs = 0
    while not search.exhausted:
        run = executor.execute(search)
        runs += 1
        steps = named_steps(run)
        assert sorted(operation for _, operation in steps if "word" in operation) == [
            "load word",
            "rmw word",
        ]
        assert replay(program, Schedule.of(run), steps=steps).divergence is None
    assert runs > 1


# Turns.


@pytest.mark.parametrize("program", ALL, ids=lambda program: program.name)
@pytest.mark.parametrize("seed", range(3))
def test_turns_of_a_schedule_lead_to_the_same_schedule(program: Small, seed: int) -> None:
    run, schedule, _ = recorded(program, seed)
    follow = FollowTurns([Turn(run.names[task - 1], steps) for task, steps in schedule.turns()])
    replayed = Executor(program).execute(follow)
    assert replayed.trace == run.trace
    turns = turns_of(replayed, follow.ended)
    assert len(turns) == len(schedule.turns())
    once_more = FollowTurns(turns)
    assert Executor(program).execute(once_more).trace == run.trace
    assert turns_of(replayed, once_more.ended) == turns


def test_a_turn_until_the_task_cannot_go_on() -> None:
    run = Executor(contended(2, 2)).execute(FollowTurns([Turn("task1", None), Turn("task0", None)]))
    assert run.outcome == (1, 1, 0, 0)


def test_a_turn_that_is_cut_short_counts_as_a_preemption() -> None:
    follow = FollowTurns([Turn("task0", 2), Turn("task1", None), Turn("task0", None)])
    run = Executor(contended(2, 2)).execute(follow)
    assert run.outcome == (0, 1, 1, 0)
    assert follow.preemptions == 1
    assert [str(turn) for turn in turns_of(run, follow.ended)] == ["task0:2", "task1:*", "task0:*"]


def test_turns_of_tasks_that_cannot_run_are_passed_over() -> None:
    follow = FollowTurns(
        [Turn("nobody", 3), Turn("task1", None), Turn("task1", 4), Turn("nobody", None)]
    )
    run = Executor(contended(1, 1)).execute(follow)
    assert run.outcome == (1, 0)
    assert follow.preemptions == 0


def test_without_turns_the_first_that_can_goes_on() -> None:
    follow = FollowTurns([])
    assert Executor(contended(2, 2)).execute(follow).outcome == (0, 0, 1, 1)
    assert follow.preemptions == 0


def test_a_switch_at_a_lock_is_no_preemption() -> None:
    follow = FollowTurns([Turn("one", 2), Turn("two", None), Turn("one", None)])
    run = Executor(LOCKED).execute(follow)
    assert run.completed
    assert follow.preemptions == 1, "only the switch away from the owner; the other one waits"
    assert [turn.steps for turn in turns_of(run, follow.ended)] == [2, None, None, None]


def test_the_fair_turns_after_the_step_limit_are_taken_by_themselves() -> None:
    program, limit = contended(9, 9), 10
    follow = FollowTurns([Turn("task0", 3), Turn("task1", None)])
    run = Executor(program, limit=limit).execute(follow)
    assert run.limit_hit
    assert run.completed
    assert len(Schedule.of(run).turns()) > 3, "turn by turn"
    turns = turns_of(run, follow.ended)
    assert [str(turn) for turn in turns] == ["task0:3", "task1:*"]
    assert Executor(program, limit=limit).execute(FollowTurns(turns)).trace == run.trace
