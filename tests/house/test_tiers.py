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

SLOW = (subprocess, stress.search.races, races_of, run)
FAST = (stress, mmu, VmConfig, load, ROOT, None)


def test_a_module_is_as_slow_as_what_it_imports() -> None:
    for slow, values in ((True, SLOW), (False, FAST)):
        for imported in values:
            module = ModuleType("test_example")
            module.imported = imported  # type: ignore[attr-defined]
            assert is_slow(module) is slow, imported


def test_tests_of_the_model_are_fast_and_this_one_is_not(request: pytest.FixtureRequest) -> None:
    fast = {item.path for item in request.session.items if item.get_closest_marker("fast")}
    assert request.path not in fast
    others = {item.path for item in request.session.items} - {request.path}
    if others:  # otherwise this file was asked for alone
        assert fast <= others
        unit = ROOT / "tests" / "unit" / "mmu" / "paging"
        assert {path for path in others if unit in path.parents} <= fast
