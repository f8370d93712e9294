"""State caching: what counts as one state, on programs whose states can be counted, and on the
MMU's scenarios.

A task with n operations has n + 1 events. The state in which everybody has ended is nobody's to go
on from, so it is not kept.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from attrs import evolve

from stress.engines.carrier import pinned
from stress.engines.controlled import ControlledRuntime
from stress.engines.program import Executor, Program, ProgramTask, Run
from stress.engines.scenario_program import ScenarioProgram
from stress.results.verdict import Verdict
from stress.runs.explore import explore
from stress.runs.explore_request import ExploreRequest
from stress.scenario.load import load
from stress.search.bounded import DelayBounded, DepthFirst, PreemptionBounded, Systematic
from stress.search.exploration import Exploration, SearchBudget
from stress.search.happens_before import Fingerprint, class_of
from stress.search.random_walk import RandomWalk
from stress.search.state_cache import StateCache
from stress.search.strategies import strategy_for
from tests.stored import console
from tests.unit.stress.search.programs import (
    BUGS,
    PROTOCOL,
    SPAWNING,
    Body,
    Small,
    broken,
    contended,
    independent,
    runs,
)

ENOUGH = 20_000
TO_THE_END = Path(__file__).parents[4] / "configs" / "explore" / "exhaustive"


def classes(program: Program, search: Systematic) -> dict[int, tuple[object, ...]]:
    """Every class of schedules that is run to its end, with its outcome and findings."""
    executor = Executor(program, keep_extras=True)
    found: dict[int, tuple[object, ...]] = {}
    while not search.exhausted:
        run = executor.execute(search)
        if not run.cut:
            result = (run.outcome, *sorted(report.signature for report in run.reports))
            assert found.setdefault(class_of(run), result) == result
        run.release()
    return found


# The memory.


def test_what_was_not_here_before_is_now() -> None:
    states = StateCache(3)
    assert [states.met(state) for state in (5, 6, 5, 6)] == [False, False, True, True]
    assert len(states) == 2
    assert not states.full


def test_a_full_memory_keeps_what_it_has_and_takes_no_more() -> None:
    states = StateCache(2)
    assert [states.met(state) for state in (5, 6, 7, 7, 5)] == [False, False, False, False, True]
    assert states.full
    assert len(states) == 2


# What can be counted.


@pytest.mark.parametrize("steps", [(0, 0), (2, 3), (5, 5)])
def test_tasks_with_nothing_in_common_are_a_grid_of_states(steps: tuple[int, int]) -> None:
    """Each of the m x n states in which both can go on has one alternative; all but one schedule of
    the last two end early."""
    m, n = (count + 1 for count in steps)
    states = StateCache()
    done = runs(independent(*steps), DepthFirst(states), ENOUGH)
    assert len(states) == (m + 1) * (n + 1) - 1
    assert len(done) == 1 + m * n
    assert len({class_of(run) for run in done if not run.cut}) == 1


def test_three_tasks_are_a_cube() -> None:
    states = StateCache()
    runs(independent(2, 2, 2), DepthFirst(states), ENOUGH)
    assert len(states) == 4**3 - 1


def test_what_is_in_conflict_stays_apart() -> None:
    """Two tasks that write to one word twice each: a state for each order of so many writes, times
    who has started."""
    states = StateCache()
    done = [run for run in runs(contended(2, 2), DepthFirst(states), ENOUGH) if not run.cut]
    assert len({run.outcome for run in done}) == 6
    begun = {(0, 0): 4, (1, 0): 2, (2, 0): 2, (0, 1): 2, (0, 2): 2, (1, 1): 2, (2, 1): 3, (1, 2): 3}
    assert len(states) == sum(begun.values())


def test_within_a_bound_a_state_counts_once_for_each_task_in_turn() -> None:
    states = StateCache()
    plain, cut = DelayBounded(2), DelayBounded(2, states)
    whole = runs(independent(8, 8), plain, ENOUGH)
    less = runs(independent(8, 8), cut, ENOUGH)
    assert plain.exhausted
    assert cut.exhausted
    assert sum(len(run.trace) for run in less) < sum(len(run.trace) for run in whole) * 0.7
    assert 10 * 10 - 1 < len(states) <= 2 * (10 * 10 - 1)


@pytest.mark.parametrize("most", [0, 1, 4])
def test_little_memory_costs_schedules_and_nothing_else(most: int) -> None:
    little, plenty = StateCache(most), StateCache()
    program = contended(1, 2)
    assert (
        classes(program, DepthFirst(little))
        == classes(program, DepthFirst(plenty))
        == classes(program, DepthFirst())
    )
    more, fewer = (
        len(runs(program, DepthFirst(StateCache(size)), ENOUGH)) for size in (most, 1000)
    )
    assert more > fewer
    assert little.full
    assert not plenty.full


# What makes a state.


def test_the_beginning_of_a_schedule_has_a_class_of_its_own_at_every_step() -> None:
    (run,) = runs(PROTOCOL, RandomWalk(3), 1)
    fingerprint = Fingerprint()
    numbers = [
        fingerprint.take(run.trace[:length], run.extras) for length in range(len(run.trace) + 1)
    ]
    assert len(set(numbers)) == len(numbers)
    assert numbers[-1] == class_of(Run(trace=run.trace, extras=run.extras))


def _watched(runtime: ControlledRuntime) -> Body:
    """What an observer sees during one task's step depends on another's; no task learns of it, and
    both go on afterwards."""
    word, other = runtime.cell("word", 0), runtime.cell("other", 0)
    after = runtime.cell("after", 0)
    seen: list[int] = []

    def look() -> None:
        other.value = 1
        runtime.scheduler.quiet += 1
        seen.append(word.value)
        runtime.scheduler.quiet -= 1
        other.value = 2

    def write() -> None:
        word.value = 1
        after.value = 1

    return Body(
        [ProgramTask("looks", look), ProgramTask("writes", write)],
        lambda: [broken("O1", "stale")] if seen == [1] else [],
        lambda: seen[0],
    )


@pytest.mark.parametrize(
    "make",
    [
        DepthFirst,
        lambda states: DelayBounded(1, states),
        lambda states: PreemptionBounded(1, states),
    ],
)
def test_what_an_observer_has_read_makes_a_difference(make: type[DepthFirst]) -> None:
    done = runs(Small("watched", _watched), make(StateCache()), ENOUGH)
    assert {(run.outcome, run.failed) for run in done if not run.cut} == {(0, False), (1, True)}


def _accidental_order(runtime: ControlledRuntime) -> Body:
    """Two stores to one SPTE that only a lock that happens to be taken in between puts into an
    order."""
    table, lock = runtime.table(2, "SPTE"), runtime.lock("lock")

    def first() -> None:
        table.store(1, 5)
        lock.acquire()
        lock.release()

    def second() -> None:
        lock.acquire()
        lock.release()
        table.store(1, 5)

    return Body([ProgramTask("first", first), ProgramTask("second", second)])


def test_equal_values_are_not_one_state() -> None:
    """Every task has seen, and every word holds, the same, whoever takes the lock first; but only
    one order has the race."""
    states = StateCache()
    tally = Exploration(Small("accidental order", _accidental_order), DelayBounded(2, states)).run(
        SearchBudget(stop_at_failure=False)
    )
    assert tally.exhausted
    assert tally.cut
    assert tally.fired() == {"O7", "unseen-write-overwritten"}
    assert set(tally.outcomes) == {"None"}


@pytest.mark.parametrize("program", [*BUGS, SPAWNING], ids=lambda program: program.name)
@pytest.mark.parametrize("name", ["dfs", "delay:2", "preemption:1", "preemption:2"])
def test_small_programs_show_the_same(program: Small, name: str) -> None:
    plain, cut = strategy_for(name, 0), strategy_for(name, 0, 1000)
    assert isinstance(plain, Systematic)
    assert isinstance(cut, Systematic)
    assert plain.states is None
    assert classes(program, cut) == classes(program, plain)
    assert cut.states is not None
    assert cut.states


# The MMU.


@pytest.mark.parametrize(
    "name",
    [
        "delete-vs-dma",
        "detach-vs-delete",
        "fault-vs-io-fault",
        "two-vcpus-fault",
        "two-vcpus-io-fault",
    ],
)
def test_scenarios_show_the_same(name: str) -> None:
    program = ScenarioProgram(name, load(TO_THE_END / f"{name}.toml"))
    with pinned():
        assert classes(program, DelayBounded(1, StateCache())) == classes(program, DelayBounded(1))


def asked(strategy: str, *overrides: str, schedules: int | None = None) -> ExploreRequest:
    return ExploreRequest(
        load(TO_THE_END / "delete-vs-dma.toml", overrides),
        "delete-vs-dma",
        1,
        strategy,
        schedules=schedules,
    )


def test_an_exploration_tells_how_many_states_it_has_kept() -> None:
    explored = explore(asked("delay:1"))
    assert explored.judgement.verdict is Verdict.PASS
    assert explored.tally.cut
    text = "\n".join(console(explored))
    assert (
        f"states     {explored.tally.states:,} remembered; {explored.tally.cut:,} schedules were "
        "cut" in text
    )


def test_an_exploration_tells_that_it_could_keep_no_more() -> None:
    explored = explore(asked("delay:1", "explore.states=50", schedules=5))
    assert explored.tally.states == 50
    assert (
        "states     50 remembered, as many as explore.states allows: later ones were not"
        in "\n".join(console(explored))
    )


def test_without_states_every_schedule_is_run_to_its_end() -> None:
    explored = explore(asked("delay:1", "explore.states=0", schedules=20))
    assert not explored.tally.cut
    assert not explored.tally.states
    assert "remembered" not in "\n".join(console(explored))


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        (["explore.states=0"], "schedule with at most 0 preemptions of this scenario"),
        ([], "order of events of this scenario that takes at most 0 preemptions"),
    ],
)
def test_what_is_proved_is_said_as_it_was_proved(overrides: list[str], what: str) -> None:
    explored = explore(asked("preemption:0", *overrides))
    assert explored.judgement.verdict is Verdict.PASS
    assert f"proved: no {what} breaks a rule" in " ".join(" ".join(console(explored)).split())


def test_a_search_that_is_stopped_proves_nothing_however_much_was_cut() -> None:
    explored = explore(evolve(asked("dfs", schedules=20), exhaustive=True))
    assert explored.tally.cut
    assert explored.judgement.verdict is Verdict.INCONCLUSIVE
