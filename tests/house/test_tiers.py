"""The fast tier: what it takes, and that it is not empty."""

from __future__ import annotations

import subprocess
from types import ModuleType

import pytest

import mmu
import stress.search.races
from mmu.kvm import VmConfig
from stress.scenario.load import load
from stress.search.races import races_of
from tests.command import ROOT, run
from tests.tiers import is_slow


@pytest.mark.parametrize(
    ("imported", "slow"),
    [
        (subprocess, True),
        (stress.search.races, True),
        (races_of, True),
        (run, True),
        (stress, False),
        (mmu, False),
        (VmConfig, False),
        (load, False),
        (ROOT, False),
        (None, False),
    ],
    ids=str,
)
def test_a_module_is_as_slow_as_what_it_imports(imported: object, slow: bool) -> None:
    module = ModuleType("test_example")
    module.imported = imported  # type: ignore[attr-defined]
    assert is_slow(module) is slow


def test_tests_of_the_model_are_fast_and_this_one_is_not(request: pytest.FixtureRequest) -> None:
    fast = {item.path for item in request.session.items if item.get_closest_marker("fast")}
    assert request.path not in fast
    others = {item.path for item in request.session.items} - {request.path}
    if others:  # otherwise this file was asked for alone
        assert fast <= others
        unit = ROOT / "tests" / "unit" / "mmu" / "paging"
        assert {path for path in others if unit in path.parents} <= fast
