"""Points that were not reached are told only where they could have been."""

from __future__ import annotations

from pathlib import Path

import pytest

from stress.observe.points import POINTS
from stress.observe.possible import possible_points
from stress.runs.explore import explore
from stress.runs.explore_request import ExploreRequest
from stress.scenario.load import load
from tests.command import ROOT

EXPLORED = sorted((ROOT / "configs" / "explore").glob("*.toml"))


@pytest.mark.parametrize("path", EXPLORED, ids=lambda path: path.stem)
def test_no_scenario_passes_a_point_that_it_cannot(path: Path) -> None:
    scenario = load(path)
    tally = explore(ExploreRequest(scenario, path.stem, 1, "random", schedules=20)).tally
    assert tally.points
    assert set(tally.points) <= set(possible_points(scenario, threads=False))


def test_a_scenario_without_device_host_and_nested_guest_lacks_their_points() -> None:
    scenario = load(
        ROOT / "configs" / "quick.toml",
        ("actors.consumer.devices=0", "actors.exporter.threads=0", "actors.nx.enabled=false"),
    )
    able = possible_points(scenario, threads=False)
    assert not {"P8b", "P12", "P16", "P17", "P19"} & set(able)
    assert {"P1", "P2", "P4", "P5", "P20"} <= set(able)
    assert able == [name for name in POINTS if name in able]
