"""`stress rerun`: the same scenario, seed, variants and budget, or an error that says what is not
the same."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from attrs import evolve

from stress.commands import rerun
from stress.results.environment import observe
from stress.results.exploration_record import RequestedBudget
from stress.results.inputs import VariantFile, check, fingerprints
from stress.scenario.errors import ResultError, VariantError
from stress.scenario.load import load, unstructure
from tests.records import ENVIRONMENT, record
from tests.stored import CONFIGS, SCENARIO, SCENARIOS, exploration

RESULTS = Path("results")
IDEA = """\
from mmu import Variant
from mmu.memory.tlb import RemoteTlb


class VcpusOnly(RemoteTlb):
    def notify_importers(self, gfn, pages):
        pass


VARIANT = Variant(name="vcpus-only", title="importers are not told", parts=(VcpusOnly,))
"""


@pytest.fixture
def idea(tmp_path: Path) -> Path:
    path = tmp_path / "idea.py"
    path.write_text(IDEA)
    return path


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_shipped_scenario_is_asked_for_again_as_it_was(path: Path) -> None:
    scenario = load(path)
    files = scenario.vm.variant_files
    names = [*scenario.vm.variants, *(["rare-loss"] if files else [])]
    stored = evolve(
        record(),
        scenario=unstructure(scenario),
        seed=99,
        variants=tuple(names),
        variant_files=fingerprints(files),
    )
    request = rerun.run_request(stored, "run.json", RESULTS)
    assert request.scenario == evolve(
        scenario, seed=99, explore=evolve(scenario.explore, scenario=None)
    )
    assert (request.name, request.seed, request.results, request.variant_files) == (
        "quick",
        99,
        RESULTS,
        tuple(files),
    )


def test_variants_from_files_are_there_again(idea: Path) -> None:
    stored = evolve(record(), variants=("vcpus-only",), variant_files=fingerprints([idea]))
    request = rerun.run_request(stored, "run.json", RESULTS)
    assert [variant.name for variant in request.variants] == ["vcpus-only"]
    assert request.variant_files == (str(idea),)


def test_files_that_are_missing_or_changed_are_all_named(idea: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed.py"
    changed.write_text("1")
    then = fingerprints([idea, changed, "gone.py", idea])
    assert [Path(file.path).name for file in then] == ["idea.py", "changed.py", "gone.py"]
    assert then[0].sha256 == hashlib.sha256(IDEA.encode()).hexdigest()
    changed.write_text("2")
    with pytest.raises(ResultError) as caught:
        rerun.run_request(evolve(record(), variant_files=then), "here/run.json", RESULTS)
    text = str(caught.value)
    assert text.startswith("here/run.json cannot be run again as it was:\n")
    assert f"variant file {changed}: it has changed since" in text
    assert "variant file gone.py: there is no such file" in text
    assert "idea.py" not in text
    check(then[:1], "here/run.json")


def test_a_file_that_could_not_be_read_then_is_never_the_same(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text("")
    with pytest.raises(ResultError, match="has changed"):
        check([VariantFile(str(tmp_path / "late.py"), "")], "run.json")


def test_a_variant_that_the_record_does_not_explain_is_an_error() -> None:
    with pytest.raises(
        ResultError, match=r"was run with variants my-idea; what is stored makes none of it"
    ):
        rerun.run_request(evolve(record(), variants=("my-idea",)), "run.json", RESULTS)


def test_a_scenario_that_this_version_cannot_run_names_every_problem() -> None:
    scenario = unstructure(SCENARIO)
    scenario["vm"]["vcpu"] = 3
    scenario["memory"]["churn_slots"] = -1
    with pytest.raises(ResultError, match="cannot run") as caught:
        rerun.run_request(evolve(record(), scenario=scenario), "run.json", RESULTS)
    assert "vm.vcpu: unknown key" in str(caught.value)
    assert "memory.churn_slots: found -1" in str(caught.value)


def test_an_exploration_is_asked_for_again_as_it_was(idea: Path) -> None:
    stored = exploration(
        variant_files=(str(idea),),
        asked=RequestedBudget(None, None, True, True, 3),
        strategy="dpor",
    )
    request = rerun.explore_request(stored, "explore.json")
    assert request.scenario == SCENARIO
    assert (
        request.strategy,
        request.seed,
        request.exhaustive,
        request.keep_going,
        request.jobs,
    ) == ("dpor", 1, True, True, 3)
    assert (request.schedules, request.seconds, request.variant_files) == (None, None, (str(idea),))


def test_so_many_seconds_become_as_many_schedules() -> None:
    request = rerun.explore_request(
        exploration(asked=RequestedBudget(None, 10.0, False, False)), "explore.json"
    )
    assert (request.schedules, request.seconds) == (10, None)
    request = rerun.explore_request(
        exploration(asked=RequestedBudget(500, None, False, False)), "explore.json"
    )
    assert (request.schedules, request.seconds) == (500, None)


def test_a_variant_file_that_is_the_same_but_does_not_load_says_why(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import nothing_of_that_name")
    with pytest.raises(VariantError, match="nothing_of_that_name"):
        rerun.explore_request(exploration_of(tmp_path / "bad.py"), "explore.json")


def exploration_of(path: Path) -> rerun.exploration.ExplorationRecord:
    return evolve(exploration(), variant_files=fingerprints([path]))


def test_what_is_different_around_it_is_said() -> None:
    now = evolve(
        ENVIRONMENT,
        python="3.13.5",
        gil_enabled=False,
        cpus=64,
        packages={"attrs": "26.1", "rich": "15"},
        version="0.2.0",
    )
    assert list(rerun.differences(ENVIRONMENT, now)) == [
        "tdp-stress: 0.1.0 then, 0.2.0 now",
        "Python: 3.11.7 then, 3.13.5 now",
        "GIL: yes then, no now",
        "CPUs: 2 then, 64 now",
        "package attrs: 23.2 then, 26.1 now",
        "package rich: not recorded then, 15 now",
    ]
    assert list(rerun.differences(observe(), observe())) == []
