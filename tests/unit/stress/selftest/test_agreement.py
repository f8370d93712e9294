"""Agreement of the engines: that they do, and that what only threads have shown is a hole in the
controlled engine."""

from __future__ import annotations

import pytest
from attrs import evolve

from stress.mutants.case import Case
from stress.scenario.scripts import SETUP
from stress.scenario.types import Lines, Scenario
from stress.selftest import agreement as agreeing
from stress.selftest.agreement import AGREED_CASES, Agreement, State, agreement
from stress.selftest.registry import without_variants
from tests.patience import PATIENCE


@pytest.mark.parametrize("name", AGREED_CASES)
def test_what_threads_show_of_a_small_scenario_is_seen_under_control(name: str) -> None:
    found = agreement(name, 1, PATIENCE)
    assert (found.state, found.errors, found.holes) == ("agree", (), ())
    assert found.both > 30
    assert found.steps > 0
    assert found.schedules > 0


def test_a_crippled_engine_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under control the memslot worker does nothing: what its deletes reach on threads is never
    seen."""

    def crippled(scenario: Scenario) -> list[Scenario]:
        kept = {name: part for name, part in scenario.script.items() if name != "memslot-worker"}
        return [evolve(scenario, script=kept)]

    monkeypatch.setattr(agreeing, "_repeated", crippled)
    monkeypatch.setattr(agreeing, "THREADS_S", 2.0)
    found = agreement("delete-vs-dma", 1, 2.0)
    assert (found.state, found.errors) == ("DISAGREE", ())
    assert "memslot_begin: DELETE" in found.holes
    assert found.schedules > 0


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, "agree"),
        ({"holes": ("point: P1",)}, "DISAGREE"),
        ({"holes": ("point: P1",), "errors": ("oops\nTraceback",)}, "error"),
        ({"both": 0}, "idle"),
        ({"steps": 0}, "idle"),
    ],
)
def test_the_state_in_a_word(changes: dict[str, object], state: State) -> None:
    found = Agreement("move", both=3, controlled_only=2, steps=7, schedules=9)
    assert evolve(found, **changes).state == state


def test_a_script_is_repeated_a_few_times_and_its_setup_is_not() -> None:
    scenario = without_variants(Case("explore/recreate"))
    once, twice, often = agreeing._repeated(scenario)
    assert once == scenario
    assert twice.script["memslot-worker"] == Lines(scenario.script["memslot-worker"] * 2)
    assert len(often.script["vcpu0"]) == 4 * len(scenario.script["vcpu0"])
    assert {each.script[SETUP] for each in (once, twice, often)} == {scenario.script[SETUP]}
    drawn = evolve(scenario, script={})
    assert agreeing._repeated(drawn) == [drawn]
