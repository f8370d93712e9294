"""Strategies by name: every name, with and without its number, and what there is not."""

from __future__ import annotations

import pytest

from stress.engines.program import Executor
from stress.scenario.errors import StressError
from stress.search.strategies import DEFAULT_PARAMETER, EXHAUSTIVE, STRATEGIES, strategy_for
from tests.unit.stress.search.programs import LOST_UPDATE, PROTOCOL, contended, runs


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_name_is_a_strategy_that_finds_a_lost_update(name: str) -> None:
    strategy = strategy_for(name, 1)
    assert strategy.name.partition(":")[0] == name
    assert not strategy.exhausted
    executor = Executor(LOST_UPDATE)
    assert any(executor.execute(strategy).failed for _ in range(60) if not strategy.exhausted)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_says_what_it_is(name: str) -> None:
    assert STRATEGIES[name][0]


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in EXHAUSTIVE])
def test_a_seed_decides_what_is_drawn(name: str) -> None:
    one, same, other = (
        [run.trace for run in runs(PROTOCOL, strategy_for(name, seed), 20)] for seed in (5, 5, 6)
    )
    assert one == same
    assert one != other


@pytest.mark.parametrize("name", EXHAUSTIVE)
def test_an_exhaustive_strategy_comes_to_its_end(name: str) -> None:
    strategy = strategy_for(name, 0)
    done = runs(contended(1, 1), strategy, 100)
    assert strategy.exhausted
    assert {run.outcome for run in done if run.completed} == {(0, 1), (1, 0)}


@pytest.mark.parametrize("name", DEFAULT_PARAMETER)
def test_a_number_after_the_colon(name: str) -> None:
    given, default = f"{name}:{DEFAULT_PARAMETER[name]}", name
    assert [run.trace for run in runs(PROTOCOL, strategy_for(given, 3), 10)] == [
        run.trace for run in runs(PROTOCOL, strategy_for(default, 3), 10)
    ]


def test_more_preemptions_are_more_schedules() -> None:
    counts = [
        len(runs(contended(2, 2), strategy_for(f"preemption:{bound}", 0), 1_000))
        for bound in range(4)
    ]
    assert counts == sorted(set(counts))
    assert counts[0] == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("magic", "there is no strategy 'magic': there are portfolio, random, pct"),
        ("", "there is no strategy ''"),
        ("Random", "there is no strategy"),
        ("pct:0", "the depth of pct is 1 to 5"),
        ("pct:6", "the depth of pct is 1 to 5"),
        ("pct:x", "a number is needed after the colon"),
        ("pct:-1", "a number is needed after the colon"),
        ("delay:two", "a number is needed after the colon"),
        ("preemption:1.5", "a number is needed after the colon"),
        ("random:3", "random takes no parameter"),
        ("dpor:1", "dpor takes no parameter"),
    ],
)
def test_what_is_no_strategy_says_why(text: str, reason: str) -> None:
    with pytest.raises(StressError, match=reason):
        strategy_for(text, 0)


@pytest.mark.parametrize("text", ["pct:", "random:", "delay:"])
def test_nothing_after_the_colon_is_the_default(text: str) -> None:
    assert strategy_for(text, 0).name


def test_what_only_looks_like_a_digit_is_an_error_too() -> None:
    with pytest.raises(StressError):
        strategy_for("pct:\N{SUPERSCRIPT TWO}", 0)
