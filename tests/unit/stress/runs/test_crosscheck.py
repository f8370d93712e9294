"""Cross-checking: agreement, and that what only threads have shown is a hole in the controlled
engine."""

from __future__ import annotations

from pathlib import Path

import pytest
from attrs import evolve

import stress.runs.crosscheck as checking
from stress.results.verdict import ExitCode
from stress.runs.crosscheck import Crosscheck, crosscheck, lines
from stress.scenario.load import load
from stress.scenario.scripts import SETUP
from stress.scenario.types import Lines, Scenario

SMALL = load(Path(__file__).parents[4] / "configs" / "explore" / "recreate.toml")
BOTH = Crosscheck(
    "small",
    frozenset({"a", "b"}),
    frozenset({"a", "b", "c"}),
    frozenset({"O1 x"}),
    frozenset({"O1 x", "O2 y"}),
    7,
    9,
    (),
)


def test_what_both_have_shown_agrees_and_more_under_control_is_no_hole() -> None:
    assert BOTH.holes == []
    assert BOTH.exit_code is ExitCode.PASS
    text = list(lines(BOTH))
    assert text[0] == "small: 7 steps of actors on threads, 9 controlled schedules"
    assert text[1] == "sites    2 on both engines, 0 on threads only, 1 under control only"
    assert "  under control only: c" in text
    assert {"finding  O1 x: threads and control", "finding  O2 y: control"} <= set(text)
    assert text[-1].startswith("AGREE")


@pytest.mark.parametrize(
    ("changes", "hole"),
    [
        ({"sites_controlled": frozenset({"b"})}, "site a"),
        ({"findings_controlled": frozenset()}, "finding O1 x"),
    ],
)
def test_what_only_threads_have_shown_is_a_hole(
    changes: dict[str, frozenset[str]], hole: str
) -> None:
    result = evolve(BOTH, **changes)
    assert result.holes == [hole]
    assert result.exit_code is ExitCode.HARNESS_ERROR
    text = list(lines(result))
    assert f"HOLE     {hole}: seen on threads, never under control" in text
    assert text[-1].startswith("DISAGREE")


def test_an_error_of_either_engine_is_no_agreement() -> None:
    result = evolve(BOTH, errors=("oops\nTraceback",))
    assert result.exit_code is ExitCode.HARNESS_ERROR
    assert "harness error: oops" in list(lines(result))


@pytest.mark.parametrize("changes", [{"sites_threads": frozenset()}, {"steps_threads": 0}])
def test_threads_that_did_nothing_prove_nothing(changes: dict[str, object]) -> None:
    result = evolve(BOTH, **changes)
    assert result.exit_code is ExitCode.INCONCLUSIVE
    assert list(lines(result))[-1].startswith("INCONCLUSIVE")


def test_a_script_is_repeated_a_few_times_and_its_setup_is_not() -> None:
    once, twice, often = checking._repeated(SMALL)
    assert once == SMALL
    assert twice.script["memslot-worker"] == Lines(SMALL.script["memslot-worker"] * 2)
    assert len(often.script["vcpu0"]) == 4 * len(SMALL.script["vcpu0"])
    assert {each.script[SETUP] for each in (once, twice, often)} == {SMALL.script[SETUP]}
    drawn = evolve(SMALL, script={})
    assert checking._repeated(drawn) == [drawn]


def test_a_crippled_engine_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under control the memslot worker does nothing: what its deletes reach on threads is never
    seen."""

    def crippled(scenario: Scenario) -> list[Scenario]:
        return [
            evolve(
                scenario,
                script={
                    name: part for name, part in scenario.script.items() if name != "memslot-worker"
                },
            )
        ]

    monkeypatch.setattr(checking, "_repeated", crippled)
    phases: list[str] = []
    result = crosscheck("small", SMALL, 1, 0.5, (), phases.append)
    assert result.exit_code is ExitCode.HARNESS_ERROR
    assert result.errors == ()
    assert "site memslot_begin: DELETE" in result.holes
    assert result.schedules > 0
    assert len(phases) == 2
