"""Minimising: what is left fails in the same way, nothing more can go, and it is always the
same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve

from stress.engines.program import Run
from stress.engines.scenario_program import ScenarioProgram
from stress.runs.explore import explore
from stress.runs.explore_request import ExploreRequest
from stress.scenario.load import load
from stress.scenario.types import Lines, Scenario
from stress.search import minimise
from stress.search.exploration import Failure
from stress.search.minimise import (
    Minimised,
    Minimiser,
    _fewer,
    _limit,
    operations,
    size,
    smaller_scenarios,
)
from stress.search.replay import replay
from stress.search.schedule import Schedule, ScheduleError
from stress.search.turns import Turn

EXPLORE = Path(__file__).parents[4] / "configs" / "explore"
Case = tuple[Scenario, Failure]


@pytest.fixture(autouse=True)
def _short_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the schedules for every search: nothing here depends on how long they are, and
    1-minimal is what no search of the same length makes smaller."""
    monkeypatch.setattr(
        minimise, "SEARCHES", tuple((make, schedules // 4) for make, schedules in minimise.SEARCHES)
    )
    monkeypatch.setattr(minimise, "FEWER_PREEMPTIONS", minimise.FEWER_PREEMPTIONS // 4)


def failing(name: str, variant: str, seed: int = 1) -> Case:
    """A scenario with a broken variant, and the first failure that the portfolio finds."""
    scenario = load(EXPLORE / f"{name}.toml", [f'vm.variants=["{variant}"]'])
    tally = explore(ExploreRequest(scenario, name, seed, "portfolio", schedules=400)).tally
    return scenario, next(iter(tally.failures.values()))


def minimised(case: Case) -> tuple[Minimiser, Minimised]:
    scenario, failure = case
    minimiser = Minimiser("small", (), failure.report.signature, predicted=failure.predicted)
    result = minimiser.minimise(scenario, failure.schedule)
    assert result is not None
    return minimiser, result


@pytest.fixture(scope="module")
def stale() -> Case:
    """A vCPU maps a page in a root that was made obsolete meanwhile: it takes a preemption."""
    return failing("fault-vs-delete", "stale-check-skipped", 2)


@pytest.fixture(scope="module")
def at_once() -> Case:
    """A table that is freed without a grace period."""
    return failing("fault-vs-delete", "table-freed-at-once")


@pytest.fixture(scope="module")
def drawn() -> Case:
    """A failure of actors that draw what they do."""
    return failing("two-vcpus", "table-freed-at-once")


def is_part_of(lines: Lines, whole: Lines) -> bool:
    """Whether `lines` is `whole` with some left out."""
    rest = iter(whole)
    return all(line in rest for line in lines)


def single_removals(minimiser: Minimiser, result: Minimised) -> Iterator[str]:
    """Every single thing that could be left out and still be found to fail: nothing, if the result
    is 1-minimal."""
    best = minimiser._follow(result.scenario, result.turns)
    assert best is not None
    for what, scenario in minimise.smaller_scenarios(result.scenario):
        if minimiser._find(scenario, best.turns) is not None:
            yield what
    for end in range(len(best.turns), 0, -1):
        for turns in minimise._fewer(best.turns, end, 1):
            found = minimiser._follow(result.scenario, turns)
            if found is not None and found.key < best.key:
                yield "a turn"


@pytest.mark.parametrize("name", ["stale", "at_once"])
def test_what_is_left_fails_in_the_same_way_and_nothing_more_can_go(
    name: str, request: pytest.FixtureRequest
) -> None:
    scenario, failure = case = request.getfixturevalue(name)
    minimiser, result = minimised(case)
    assert result.after < result.before
    assert result.after[:2] == (operations(result.scenario), size(result.scenario))
    assert result.before[0] == operations(scenario)
    assert result.removed
    assert result.schedules > 1
    assert result.failure.report.signature == failure.report.signature
    assert all(
        is_part_of(lines, scenario.script[part]) for part, lines in result.scenario.script.items()
    )
    replayed = replay(
        ScenarioProgram("small", result.scenario),
        result.failure.schedule,
        steps=result.failure.steps,
    )
    assert replayed.divergence is None
    assert replayed.signatures[0] == failure.report.signature
    assert len(replayed.run.trace) == result.after[4]
    assert list(single_removals(minimiser, result)) == []


def test_the_turns_of_a_task_are_brought_together() -> None:
    """A turn is left out, or runs on, or goes to the task's next turn, which comes where it was, or
    stays where it is."""
    turns = [Turn("a", 1), Turn("b", 2), Turn("a", 4), Turn("b", None)]
    tried = [
        [(turn.task, turn.steps) for turn in candidate]
        for end in range(1, 5)
        for candidate in _fewer(turns, end, 1)
    ]
    assert [("b", 2), ("a", 5), ("b", None)] in tried
    assert [("a", 5), ("b", 2), ("b", None)] in tried
    assert [("a", 1), ("a", 4), ("b", None)] in tried
    assert [("a", 1), ("b", None), ("a", 4)] in tried
    assert len({tuple(candidate) for candidate in tried}) <= len(tried) <= 4 * len(turns)


def test_a_schedule_of_many_switches_comes_down_to_the_few_that_it_takes() -> None:
    scenario, failure = failing("same-page-twice", "lost-link-race-ignored", 5)
    result = Minimiser("small", (), failure.report.signature).simplify(scenario, failure.schedule)
    assert result is not None
    assert result.scenario == scenario, "the program stays"
    assert result.failure.report.signature == failure.report.signature
    assert result.before[2] > 50
    assert result.after[2] < 10


def test_a_failure_is_known_by_its_first_report_or_by_any() -> None:
    scenario = load(EXPLORE / "two-deletes.toml", ['vm.variants=["double-put-of-invalid-root"]'])
    tally = explore(ExploreRequest(scenario, "two-deletes", 1, "portfolio", schedules=20)).tally
    failure = next(failure for failure in tally.failures.values() if failure.others)
    second = failure.others[0].signature
    assert Minimiser("small", (), second).simplify(scenario, failure.schedule) is None
    result = Minimiser("small", (), second, first=False).simplify(scenario, failure.schedule)
    assert result is not None
    assert result.failure.report.signature == second


def test_the_result_is_always_the_same(at_once: Case) -> None:
    (_, one), (_, two) = minimised(at_once), minimised(at_once)
    assert one.scenario == two.scenario
    assert one.failure.schedule == two.failure.schedule
    assert (one.turns, one.after, one.schedules, one.removed) == (
        two.turns,
        two.after,
        two.schedules,
        two.removed,
    )


def test_a_schedule_that_does_not_fail_is_not_minimised(at_once: Case) -> None:
    scenario, failure = at_once
    correct = load(EXPLORE / "fault-vs-delete.toml")
    assert (
        Minimiser("small", (), failure.report.signature).minimise(correct, failure.schedule) is None
    )
    assert Minimiser("small", (), "O1/something/else").minimise(scenario, failure.schedule) is None
    assert (
        Minimiser("small", (), failure.report.signature).minimise(
            scenario, Schedule(0, (1, 2, 3), 0)
        )
        is None
    )


def test_a_race_that_did_no_harm_can_be_minimised_as_what_it_is() -> None:
    scenario = load(EXPLORE / "fault-vs-delete.toml", ['vm.variants=["srcu-wait-skipped"]'])
    tally = explore(
        ExploreRequest(scenario, "small", 1, "random", schedules=40, keep_going=True)
    ).tally
    failure = next(failure for failure in tally.failures.values() if failure.predicted)
    adopted = Minimiser("small", (), failure.report.signature, predicted=True)._adopt(
        scenario, failure.schedule
    )
    assert adopted is not None
    assert adopted.reports[0].signature == failure.report.signature
    assert adopted.run.reports == ()
    assert (
        Minimiser("small", (), failure.report.signature)._adopt(scenario, failure.schedule) is None
    )


# Failures that go on for ever.


@pytest.fixture(scope="module")
def endless() -> Case:
    """An SPTE that somebody else has frozen is overwritten, which leaves a fault that is retried
    until it gets fair turns."""
    tries = (failing("log-off-vs-fault", "frozen-entry-overwritten", seed) for seed in range(1, 50))
    return next(case for case in tries if len(case[1].schedule.choices) > 20_000)


def test_what_goes_on_after_the_failure_is_not_waited_for(endless: Case) -> None:
    scenario, failure = endless
    minimiser = Minimiser("small", (), failure.report.signature)
    adopted = minimiser._adopt(scenario, failure.schedule)
    assert adopted is not None
    assert adopted.reports[0].signature == failure.report.signature
    assert len(adopted.run.trace) == 1_000
    full = minimiser._in_full(adopted)
    assert full.reports == adopted.reports[:1] + full.reports[1:]
    assert len(full.run.trace) == len(failure.schedule.choices)
    assert full.run.trace[:1_000] == adopted.run.trace[:1_000]


@pytest.mark.parametrize(
    ("hit", "failed_at", "limit"),
    [
        (False, None, 1_500),
        (False, 100, 1_500),
        (True, 100, 1_000),
        (True, 1_000, 3_000),
        (True, 9_000, 20_000),
    ],
)
def test_how_long_a_smaller_program_is_tried(hit: bool, failed_at: int | None, limit: int) -> None:
    run = Run(trace=[(1, 0, 0)] * 500, limit_hit=hit)
    assert _limit(20_000, run, failed_at) == limit


@pytest.mark.parametrize("failed_at", [None, 20_000, 20_100])
def test_what_fails_only_by_going_on_gets_all_its_steps(failed_at: int | None) -> None:
    assert _limit(20_000, Run(limit_hit=True), failed_at) is None


# Scenarios that draw.


def test_what_actors_have_drawn_becomes_a_script(drawn: Case) -> None:
    scenario, failure = drawn
    assert not scenario.script
    adopted = Minimiser("small", (), failure.report.signature)._adopt(scenario, failure.schedule)
    assert adopted is not None
    assert adopted.scenario.script
    assert set(adopted.scenario.script) <= {"vcpu0", "vcpu1", "device0", "memslot-worker"}
    assert adopted.reports[0].signature == failure.report.signature
    assert evolve(adopted.scenario, script={}) == scenario


def test_how_an_actor_leaves_is_written_down_too() -> None:
    """A callback after the device has gone: it goes while slots are still deleted, not after
    everybody's script."""
    scenario, failure = failing("two-vcpus", "r14-teardown-order", 2)
    assert failure.report.code == "callback-after-unregister"
    minimiser = Minimiser("small", (), failure.report.signature)
    adopted = minimiser._adopt(scenario, failure.schedule)
    assert adopted is not None
    assert adopted.scenario.script["device0"][-1] == "detach"
    assert minimiser.schedules == 2, "by the turns that were recorded, without a search"


def test_what_does_not_fail_once_it_is_written_down_is_told(
    drawn: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario, failure = drawn
    monkeypatch.setattr(Minimiser, "_find", lambda *_: None)
    monkeypatch.setattr(Minimiser, "_search", lambda *_: None)
    with pytest.raises(ScheduleError, match="fails as recorded, but what its actors drew"):
        Minimiser("small", (), failure.report.signature).minimise(scenario, failure.schedule)


def test_what_is_left_of_it_is_still_a_script(drawn: Case) -> None:
    _, result = minimised(drawn)
    assert result.scenario.script


def test_a_script_is_never_left_out_as_a_whole() -> None:
    scenario = evolve(
        load(EXPLORE / "fault-vs-delete.toml"), script={"vcpu0": Lines(("write 0x0", "read 0x0"))}
    )
    assert all(smaller.script for _, smaller in smaller_scenarios(scenario))


@pytest.mark.parametrize(
    "name",
    ["fault-vs-delete", "io-fault-vs-split", "unexport-vs-io-fault", "exporters-race", "two-vcpus"],
)
def test_smaller_scenarios_are_smaller_by_one_thing_and_valid(name: str) -> None:
    scenario = load(EXPLORE / f"{name}.toml")
    found = list(smaller_scenarios(scenario))
    assert found
    assert len({what for what, _ in found}) >= len(found) - sum(map(len, scenario.script.values()))
    for what, smaller in found:
        assert (operations(smaller), size(smaller)) < (operations(scenario), size(scenario)), what
        assert smaller.obligations == scenario.obligations
        assert smaller.vm.variants == scenario.vm.variants
