"""The benchmark of what checking costs: a script that nothing else would notice breaking."""

from __future__ import annotations

import json
import runpy
from typing import Any

import pytest

from stress.engines.carrier_choice import VARIABLE
from stress.engines.program import Executor
from stress.engines.scenario_program import ScenarioProgram
from stress.scenario.load import structure
from stress.search.random_walk import RandomWalk
from tests.carriers import needs_greenlets
from tests.command import ROOT

BENCH = ROOT / "bench"


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The script's names; few pages and few turns are enough."""
    monkeypatch.syspath_prepend(BENCH)
    names = runpy.run_path(str(BENCH / "costs.py"))
    few = {"PAGES": 64, "SCHEDULES": 2, "HAND_OFFS": 100}
    assert few.keys() <= names.keys()
    names["main"].__globals__.update(few)
    return names["main"].__globals__


def test_a_figure_is_a_ratio_of_what_it_names(costs: dict[str, Any], carrier: str) -> None:
    (figure,) = costs["_controlled_steps"](1)
    assert figure.name == f"controlled step, on {carrier} / bare hand-off"
    assert figure.ratio > 0
    assert figure.ratio == round(figure.ratio, 3)
    assert figure.ratio == pytest.approx(figure.numerator_ns / figure.denominator_ns, abs=0.001)


@needs_greenlets
def test_where_there_are_two_carriers_they_are_compared(
    costs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    names = [figure.name for figure in costs["_controlled_steps"](1)]
    assert names == [
        "controlled step, on greenlets / bare hand-off",
        "controlled step, on threads / on greenlets",
    ]


def test_the_scenario_that_is_timed_faults_and_deletes(costs: dict[str, Any]) -> None:
    scenario, problems = structure(costs["SMALL"], {}, "test")
    assert scenario is not None, problems
    run = Executor(ScenarioProgram("costs", scenario)).execute(RandomWalk(1))
    assert run.completed
    assert not run.reports
    assert not run.errors
    assert run.instance.totals()["memslot_deletes"] == 1
    assert run.instance.totals()["vcpu_faults"] >= 1


@pytest.mark.parametrize("full", [True, False], ids=["checked", "unchecked"])
def test_a_bed_faults_and_zaps_every_page_with_its_rules_and_without(
    costs: dict[str, Any], full: bool
) -> None:
    bed = costs["BenchVm"](64, full=full)
    (vcpu,) = bed.vcpus
    bed.fault(vcpu, 0, 64)
    assert bed.vm.kvm.stat.leaves() == 64
    bed.zap()
    assert bed.vm.kvm.stat.leaves() == 0
    bed.run(vcpu)
    assert vcpu.stat.accesses == 64
    bed.vm.kvm.mmu_lock.read_lock()
    bed.vm.kvm.sync.might_sleep("to see whether a rule is there")
    bed.vm.kvm.mmu_lock.read_unlock()
    assert bool(bed.vm.kvm.reporter.reports) is full
    bed.vm.kvm.rcu.shutdown()


def test_every_figure_is_there_as_text_and_as_json(
    costs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = list(costs["_figures"](1, (64, 128)))
    monkeypatch.setitem(costs, "_figures", lambda *_: iter(figures))
    text = costs["measured"](quick=True, as_json=False)
    assert all(
        line.startswith(figure.name)
        for line, figure in zip(text.splitlines()[2::2], figures, strict=True)
    )
    data = json.loads(costs["measured"](quick=True, as_json=True))
    assert [each["name"] for each in data["figures"]] == [figure.name for figure in figures]
    assert {figure.name.split(",")[0] for figure in figures} >= {
        "fault path / rwlock read pair",
        "fault path",
        "KVM_RUN with faults",
        "zap per leaf",
        "controlled step",
    }
