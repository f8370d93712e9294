"""Our side of the peers' benchmark runs: it is a command that nothing else would notice
breaking."""

from __future__ import annotations

import json
import runpy

import pytest

from stress.engines.carrier import pinned
from tests.command import ROOT, python

PEERS = ROOT / "bench" / "peers"
FOUND = [f"{name} {how}" for name in "abc" for how in ("random", "exhaustive")]


def test_our_programs_of_the_peers_benchmark_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every measurement is there, and the correct program's proof takes the executions that its
    classes need."""
    monkeypatch.syspath_prepend(PEERS)
    programs = runpy.run_path(str(PEERS / "programs.py"))
    measurements = programs["MEASUREMENTS"]
    few = {"RANDOM_SCHEDULES": 50, "PROOFS": 2}
    assert few.keys() <= programs.keys()
    measurements["d random"].__globals__.update(few)
    with pinned():
        done = {name: measurement(1) for name, measurement in measurements.items()}
    assert sorted(done) == sorted([*FOUND, "d random", "d exploration", "d proof"])
    assert min(done[name] for name in FOUND) > 0
    assert (done["d random"], done["d exploration"], done["d proof"]) == (50, 50, 2 * 25)


def test_the_command_prints_the_figures_of_what_is_named() -> None:
    done = python(PEERS / "programs.py", 1, "a random", "b exhaustive")
    assert done.code == 0, done.err
    figures = json.loads(done.out)
    assert list(figures) == ["a random", "b exhaustive"]
    assert all(set(each) == {"seconds", "cpu", "schedules"} for each in figures.values())
    unknown = python(PEERS / "programs.py", 1, "e")
    assert unknown.code == 1
    assert unknown.err.startswith("there is no measurement 'e' here: there are a random, b random")


def test_the_small_scenarios_that_are_timed_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(PEERS)
    scenarios = runpy.run_path(str(PEERS / "scenarios.py"))
    explore = scenarios["explore"]
    assert len(scenarios["NAMES"]) == 4
    assert "SCHEDULES" in scenarios
    explore.__globals__["SCHEDULES"] = 2
    assert all(explore(name, 1) > 200 for name in scenarios["NAMES"])
