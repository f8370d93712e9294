"""Campaigns: what is counted, when one ends, what it keeps of a failure, and that counts of several
add up."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest

from mmu.report import Report
from stress.engines.controlled import ControlledRuntime
from stress.engines.program import ProgramTask, Strategy
from stress.search.dpor import Dpor
from stress.search.exploration import Exploration, ExplorationTally, Failure, SearchBudget
from stress.search.happens_before import class_of
from stress.search.portfolio import Portfolio
from stress.search.random_walk import RandomWalk
from stress.search.replay import replay
from stress.search.schedule import Schedule
from tests.unit.stress.search.programs import (
    DEADLOCK,
    LOST_UPDATE,
    PROTOCOL,
    USE_AFTER_FREE,
    Body,
    Small,
    broken,
    contended,
    independent,
)


def exploration(program: Small, strategy: Strategy | None = None, **options: object) -> Exploration:
    return Exploration(program, strategy or RandomWalk(1), **options)  # type: ignore[arg-type]


def failure(
    code: str = "code", rule: str = "O1", others: Sequence[Report] = (), after: int = 1
) -> Failure:
    return Failure(
        broken(rule, code),
        tuple(others),
        Schedule(0, (1,), 0),
        (("one", "start"),),
        after,
        0.5,
        "random",
    )


# Counting.


def test_good_turing_is_the_share_of_what_was_seen_once() -> None:
    tally = ExplorationTally()
    assert tally.unseen_mass == 1.0
    for schedules, (key, fresh, once) in enumerate(
        [(7, True, 1), (7, False, 0), (8, True, 1), (9, True, 2), (7, False, 2)], 1
    ):
        assert tally.note_class(key) is fresh
        tally.schedules = schedules
        assert tally.once == once
    assert tally.classes == 3
    assert tally.unseen_mass == 2 / 5
    assert tally.seen == {7: 3, 8: 1, 9: 1}


def test_the_curve_has_points_at_growing_distances() -> None:
    tally = ExplorationTally()
    for number in range(1, 1_001):
        tally.schedules = number
        tally.note_class(number // 2)
        tally.note_point()
    schedules = [point for point, _ in tally.curve]
    assert schedules[:4] == [1, 2, 3, 4]
    assert schedules == sorted(set(schedules))
    assert len(schedules) < 40
    assert tally.curve[-1][0] > 700
    assert all(classes == point // 2 + 1 for point, classes in tally.curve)


def test_tallies_add_up() -> None:
    one = ExplorationTally(schedules=3, steps=30, cut=1, unfinished=1, failing=2)
    two = ExplorationTally(schedules=4, steps=44, cut=2, failing=1)
    for key in (1, 1, 2):
        one.note_class(key)
    for key in (2, 3, 3, 4):
        two.note_class(key)
    one.failures = {"a": failure("a", after=1), "b": failure("b")}
    two.failures = {"a": failure("a", after=2), "c": failure("c", after=4)}
    one.counters, two.counters = {"x": 1, "y": 2}, {"y": 3, "z": 4}
    one.outcomes, two.outcomes = {"(1,)": 3}, {"(1,)": 1, "(2,)": 3}
    one.errors, two.errors = ["oops"], ["oops", "else"]
    one.members, two.members = (
        {"random": {"schedules": 3, "classes": 2}},
        {"random": {"schedules": 1}, "pct": {"schedules": 3}},
    )
    one.merge(two, 7.0)
    assert (one.schedules, one.steps, one.cut, one.unfinished, one.failing) == (7, 74, 3, 1, 3)
    assert one.seen == {1: 2, 2: 2, 3: 2, 4: 1}
    assert one.once == 1
    assert one.unseen_mass == 1 / 7
    assert list(one.failures) == ["a", "b", "c"]
    assert one.failures["a"].after_schedules == 1
    assert (one.failures["c"].after_schedules, one.failures["c"].after_s) == (
        3 + 4,
        7.0 + two.failures["c"].after_s,
    )
    assert one.counters == {"x": 1, "y": 5, "z": 4}
    assert one.outcomes == {"(1,)": 4, "(2,)": 3}
    assert one.errors == ["oops", "else"]
    assert one.members == {"random": {"schedules": 4, "classes": 2}, "pct": {"schedules": 3}}
    assert one.curve == [(7, 4)]


def test_merging_with_nothing_changes_nothing() -> None:
    one = exploration(PROTOCOL).run(SearchBudget(schedules=20))
    before = (one.schedules, dict(one.seen), one.once, dict(one.outcomes))
    one.merge(ExplorationTally())
    assert (one.schedules, one.seen, one.once, one.outcomes) == before


# When an exploration ends.


@pytest.mark.parametrize(
    ("budget", "failures", "met"),
    [
        (SearchBudget(), [], False),
        (SearchBudget(), [failure()], True),
        (SearchBudget(stop_at_failure=False), [failure()], False),
        (SearchBudget(wanted=frozenset({"O1"})), [failure()], True),
        (SearchBudget(wanted=frozenset({"code"})), [failure()], True),
        (SearchBudget(wanted=frozenset({"O2", "stale"})), [failure()], False),
        (SearchBudget(wanted=frozenset({"O2"})), [failure(), failure("else", "O2")], True),
        (SearchBudget(wanted=frozenset({"late"})), [failure(others=[broken("O9", "late")])], True),
    ],
)
def test_what_was_found_ends_a_search_or_not(
    budget: SearchBudget, failures: list[Failure], met: bool
) -> None:
    assert budget.is_met(failures) is met


def test_a_budget_of_schedules_is_used_up_and_can_be_continued() -> None:
    search = exploration(PROTOCOL)
    assert search.run(SearchBudget(schedules=7)).schedules == 7
    assert search.run(SearchBudget(schedules=5)).schedules == 12
    whole = exploration(PROTOCOL).run(SearchBudget(schedules=12))
    assert whole.seen == search.tally.seen
    assert whole.outcomes == search.tally.outcomes
    assert search.tally.curve[-1] == (12, search.tally.classes)


def test_the_first_failure_ends_it() -> None:
    tally = exploration(LOST_UPDATE).run(SearchBudget(schedules=1_000))
    assert tally.failing == 1
    (kept,) = tally.failures.values()
    assert kept.after_schedules == tally.schedules < 1_000
    assert kept.report.code == "lost-update"
    assert kept.strategy == "random"


def test_or_it_goes_on_and_keeps_the_first_of_equal_failures() -> None:
    first = exploration(LOST_UPDATE).run(SearchBudget(schedules=1_000)).schedules
    tally = exploration(LOST_UPDATE).run(SearchBudget(schedules=60, stop_at_failure=False))
    assert tally.schedules == 60
    assert tally.failing > 5
    (kept,) = tally.failures.values()
    assert kept.after_schedules == first


def test_it_goes_on_until_what_is_wanted_is_found() -> None:
    tally = exploration(LOST_UPDATE).run(SearchBudget(schedules=40, wanted=frozenset({"O1"})))
    assert tally.schedules == 40
    assert (
        exploration(LOST_UPDATE).run(SearchBudget(schedules=40, wanted=frozenset({"O9"}))).schedules
        < 40
    )


def test_what_comes_first_does_not_hide_what_is_wanted() -> None:
    """Every schedule breaks O3; from the third on they break O9, too, but only after that."""
    numbers = itertools.count(1)

    def make(runtime: ControlledRuntime) -> Body:
        late = [broken("O9", "late")] if next(numbers) > 2 else []
        body = LOST_UPDATE.make(runtime)
        body.judge = lambda: [broken("O3", "always"), *late]
        return body

    tally = exploration(Small("hidden", make)).run(
        SearchBudget(schedules=10, wanted=frozenset({"O9"}))
    )
    assert tally.schedules == tally.failing == 3
    assert [[report.code for report in kept.reports] for kept in tally.failures.values()] == [
        ["always"],
        ["always", "late"],
    ]


def test_an_exhausted_space_ends_it() -> None:
    tally = exploration(contended(2, 2), Dpor()).run(SearchBudget())
    assert tally.exhausted
    assert tally.schedules - tally.cut == tally.classes == 6
    assert len(tally.outcomes) == 6


def test_a_failure_of_the_harness_ends_it() -> None:
    def make(runtime: ControlledRuntime) -> Body:
        def oops() -> None:
            raise ValueError("oops")

        return Body([ProgramTask("one", oops)])

    tally = exploration(Small("oops", make)).run(SearchBudget(schedules=50))
    assert tally.schedules == 1
    assert tally.failures == {}
    assert "ValueError('oops')" in tally.errors[0]


def test_an_error_beside_a_finding_is_its_consequence() -> None:
    def make(runtime: ControlledRuntime) -> Body:
        def oops() -> None:
            raise ValueError("oops")

        return Body([ProgramTask("one", oops)], lambda: [broken("O1", "stale")])

    tally = exploration(Small("oops", make)).run(SearchBudget(schedules=5, stop_at_failure=False))
    assert tally.errors == []
    assert tally.failing == 5


def test_a_schedule_without_an_end_is_counted_as_that() -> None:
    class Moving(Body):
        progress: Callable[[], int]

    def moving(runtime: ControlledRuntime) -> Body:
        def forever() -> None:
            while True:
                runtime.resched()

        body = Moving([ProgramTask("one", forever)])
        body.progress = lambda: len(runtime.scheduler.trace)
        return body

    tally = exploration(Small("forever", moving), limit=20).run(SearchBudget(schedules=1))
    assert tally.unfinished == 1
    assert tally.failures == {}


# What is kept.


@pytest.mark.parametrize(
    "program", [LOST_UPDATE, DEADLOCK, USE_AFTER_FREE], ids=lambda program: program.name
)
def test_a_kept_failure_can_be_replayed(program: Small) -> None:
    tally = exploration(program).run(SearchBudget(schedules=1_000))
    (kept,) = tally.failures.values()
    assert len(kept.steps) == len(kept.schedule.choices)
    replayed = replay(program, kept.schedule, steps=kept.steps)
    assert replayed.divergence is None
    assert replayed.signatures[0] == kept.report.signature
    assert next(iter(tally.failures)) == kept.report.signature


def _unwaited(runtime: ControlledRuntime) -> Body:
    """Two plain stores to one SPTE: whichever comes second has not seen the first."""
    table = runtime.table(2, "SPTE")
    return Body(
        [
            ProgramTask("one", lambda: table.store(1, 1)),
            ProgramTask("two", lambda: table.store(1, 2)),
        ]
    )


def test_a_race_that_did_no_harm_is_predicted() -> None:
    tally = exploration(Small("unwaited", _unwaited)).run(SearchBudget(schedules=10))
    (kept,) = tally.failures.values()
    assert kept.predicted
    assert kept.report.code == "unseen-write-overwritten"
    assert (
        exploration(Small("unwaited", _unwaited), check_races=False)
        .run(SearchBudget(schedules=10))
        .failures
        == {}
    )


def test_each_schedule_has_the_seed_that_it_is_given() -> None:
    seeds: list[int] = []

    class Seeded(Small):
        def build(self, runtime: ControlledRuntime, seed: int) -> object:  # type: ignore[override]
            seeds.append(seed)
            return super().build(runtime, seed)

    search = exploration(
        Seeded("seeded", independent(1, 1).make), seeds=lambda number: 100 + number // 2
    )
    tally = search.run(SearchBudget(schedules=4))
    assert seeds == [100, 100, 101, 101]
    assert tally.classes == 2, "schedules of two programs are never one class"
    search.run(SearchBudget(schedules=2))
    assert seeds[4:] == [102, 102]


def test_a_portfolio_tells_what_its_members_did() -> None:
    tally = exploration(PROTOCOL, Portfolio(1, class_of)).run(SearchBudget(schedules=50))
    assert sum(counts["schedules"] for counts in tally.members.values()) == 50
    assert sum(counts["classes"] for counts in tally.members.values()) == tally.classes
    assert {"random", "pos", "surw", "pct:1"} <= set(tally.members)


def test_a_failure_names_the_member_of_the_portfolio_that_found_it() -> None:
    (kept,) = (
        exploration(LOST_UPDATE, Portfolio(1, class_of))
        .run(SearchBudget(schedules=1_000))
        .failures.values()
    )
    assert kept.strategy in {"random", "pos", "surw", "pct:1", "pct:2", "pct:3", "pct:4"}


def test_progress_is_told_and_what_is_left_estimated() -> None:
    search = exploration(PROTOCOL, Dpor())
    tally = search.run(SearchBudget(schedules=30))
    assert not tally.exhausted
    assert tally.remaining is not None
    assert tally.remaining > 0


def test_equal_explorations_are_equal() -> None:
    one, two = (
        exploration(PROTOCOL, Portfolio(4, class_of)).run(SearchBudget(schedules=80))
        for _ in range(2)
    )
    assert (one.seen, one.curve, one.steps, one.members) == (
        two.seen,
        two.curve,
        two.steps,
        two.members,
    )
