"""Small scenarios of the MMU under this project's explorer: how many scheduling steps it takes. A
schedule builds a VM with its actors and oracles, explores 300 to 600 steps, destroys the VM and
looks whether anything is left; only what is explored counts as steps."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from measure import main

from stress.engines.carrier import pinned
from stress.runs.explore import exploration_for
from stress.runs.explore_request import ExploreRequest
from stress.scenario.load import load
from stress.search.exploration import SearchBudget

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "explore"
NAMES = ("two-vcpus", "fault-vs-delete", "detach-vs-delete", "delete-vs-dma")
SCHEDULES = 400


def explore(name: str, seed: int) -> int:
    """The steps of a random walk over the scenario, by which the correct model breaks no rule."""
    request = ExploreRequest(
        load(CONFIGS / f"{name}.toml"), name, seed, "random", schedules=SCHEDULES, keep_going=True
    )
    with pinned():
        tally = exploration_for(request, seed).run(
            SearchBudget(schedules=SCHEDULES, stop_at_failure=False)
        )
    assert tally.schedules == SCHEDULES
    assert not tally.failures
    assert not tally.errors
    return tally.steps


if __name__ == "__main__":
    main({name: partial(explore, name) for name in NAMES}, "steps")
