"""A hunt goes through all scenarios, then where there is something new, and ends with a failure."""

from __future__ import annotations

import pytest
from attrs import evolve

from stress.results.verdict import Verdict
from stress.runs import hunt as hunting
from stress.runs.explore import explore_share
from stress.runs.hunt import Ground, HuntRequest, HuntResult, hunt
from stress.scenario.load import load
from stress.scenario.types import Scenario
from tests.stored import CONFIGS

EXPLORE = CONFIGS / "explore"


def scenarios(*names: str, variant: str = "") -> dict[str, Scenario]:
    overrides = [f'vm.variants=["{variant}"]'] if variant else []
    return {name: load(EXPLORE / f"{name}.toml", overrides) for name in names}


def request(found: dict[str, Scenario], seconds: float = 60.0) -> HuntRequest:
    return HuntRequest(found, (), seconds, 1, 1)


def test_what_fails_in_one_scenario_is_found() -> None:
    names = scenarios("two-vcpus", "fault-vs-delete", variant="stale-check-skipped")
    result = hunt(request(names))
    assert result.verdict is Verdict.FAIL
    assert result.found is not None
    (failure,) = result.found.tally.failures.values()
    assert failure.report.rule == "O12"
    assert result.found.request.name in names


def test_a_hunt_passes_when_every_scenario_proves_something(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The clock is the number of turns."""
    monkeypatch.setattr(hunting.time, "perf_counter", iter(range(1000)).__next__)
    result = hunt(request(scenarios("two-vcpus", "fault-vs-delete"), 12.0))
    assert result.verdict is Verdict.PASS, (result.errors, result.owing)
    assert all(ground.turns for ground in result.grounds)
    assert all(ground.tally.schedules >= hunting.FIRST for ground in result.grounds)


def test_a_scenario_that_was_not_reached_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hunting.time, "perf_counter", iter(range(1000)).__next__)
    result = hunt(request(scenarios("two-vcpus", "fault-vs-delete"), 2.0))
    assert result.verdict is Verdict.INCONCLUSIVE
    assert len(result.owing) == 1


def test_the_next_turn_goes_where_most_is_new_and_now_and_then_to_who_has_had_least() -> None:
    scenario = load(EXPLORE / "two-vcpus.toml")
    old = Ground("old", scenario, seconds=1.0, rate=0.5)
    new = Ground("new", scenario, seconds=9.0, rate=7.0)
    assert hunting._next([old, new], 1) is new
    assert hunting._next([old, new], 2) is new
    assert hunting._next([old, new], hunting.EVENLY) is old


def test_turns_grow_and_differ() -> None:
    ground = Ground("two-vcpus", load(EXPLORE / "two-vcpus.toml"))
    seeds = set()
    for turn in range(3):
        ground.turns = turn
        seeds.add(hunting._request(request({}), ground, 1, 1.0).seed)
    assert len(seeds) == 3


def test_what_is_learnt_of_a_turn_is_what_is_new() -> None:
    ground = Ground("two-vcpus", load(EXPLORE / "two-vcpus.toml"))
    part = explore_share(hunting._request(request({}), ground, 10, 60.0))
    hunting._learn(ground, part)
    assert ground.tally.schedules == 10
    assert ground.rate > 0
    hunting._learn(ground, part)
    assert ground.rate == 0, "it has found the same again"


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"errors": ("oops",)}, Verdict.HARNESS_ERROR),
        ({"interrupted": True}, Verdict.INCONCLUSIVE),
    ],
)
def test_trouble_is_no_pass(changes: dict[str, object], verdict: Verdict) -> None:
    result = HuntResult(request({}), (), None, (), interrupted=False, seconds=1.0)
    assert evolve(result, **changes).verdict is verdict  # type: ignore[arg-type]
