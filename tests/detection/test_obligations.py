"""Every shipped scenario demands what it is about: a green run must mean that it happened."""

from __future__ import annotations

from pathlib import Path

import pytest

from stress.observe.possible import abilities, possible
from stress.scenario.load import load
from tests.engine import MEETINGS

CONFIGS = Path(__file__).parents[2] / "configs"
SHIPPED = sorted(path for path in CONFIGS.rglob("*.toml") if path.parent.name != "studies")
CORRECT = (
    'vm.profile="hardened"',
    "vm.variants=[]",
    "vm.variant_files=[]",
    "expect.rules=[]",
    "expect.codes=[]",
)
LARGE = ("quick", "soak", "full", "vcpus-only")
"""What says PASS to everything: each has to show that the races took place that design 3.2 asks
for."""
RACES = (
    "cmpxchgs_lost",
    "stale_faults",
    "rcu_waits_with_reader",
    "srcu_waits_with_reader",
    "yields",
)
SUBJECTS = {
    "delete": (
        "memslot_deletes",
        "fast_zaps",
        "exported_zaps_nonempty",
        "roots_zapped",
        "roots_invalidated",
        "mmio_wraps",
        "tables_removed",
    ),
    "move": ("memslot_moves",),
    "toggle": ("nx_toggles", "huge_leaves"),
    "recover": ("nx_pages_recovered", "nx_toggles"),
    "read-log": ("dirty_log_reads", "fast_faults"),
    "discard": ("host_pages_discarded",),
    "migrate": ("host_pages_migrated", "host_splits"),
    "age": ("pages_aged",),
    "exit": ("process_exits",),
    "userfaults": ("userfaults", "memslot_deletes"),
    "shadow": ("shadow_pages_zapped", "obsolete_zap_breaks"),
}
"""What a script can do, and counters of which one has to be demanded then."""


def name_of(path: Path) -> str:
    return str(path.relative_to(CONFIGS).with_suffix(""))


@pytest.mark.parametrize("path", SHIPPED, ids=name_of)
def test_a_scenario_demands_only_what_the_correct_design_can_do(path: Path) -> None:
    scenario = load(path, CORRECT)
    assert scenario.obligations
    able = possible(scenario.obligations, scenario, threads="explore" not in path.parts)
    assert list(scenario.obligations) == able


@pytest.mark.parametrize(
    "path", [path for path in SHIPPED if path.parent.name == "explore"], ids=name_of
)
def test_a_small_scenario_demands_that_its_tasks_have_met(path: Path) -> None:
    assert set(load(path).obligations) & MEETINGS


@pytest.mark.parametrize(
    "path", [path for path in SHIPPED if path.parent.name == "explore"], ids=name_of
)
def test_a_script_demands_that_its_operations_took_effect(path: Path) -> None:
    scenario = load(path)
    able = abilities(scenario, threads=False)
    for subject, counters in SUBJECTS.items():
        if scenario.script and subject in able:
            assert set(counters) & set(scenario.obligations), (
                f"{subject}: demand one of {', '.join(counters)}"
            )


@pytest.mark.parametrize("name", LARGE)
def test_what_may_pass_on_threads_demands_the_races(name: str) -> None:
    demanded = load(CONFIGS / f"{name}.toml").obligations
    missing = [race for race in RACES if race not in demanded]
    assert missing == []


@pytest.mark.parametrize("name", ["quick", "soak"])
def test_the_seed_s_own_race_is_demanded_where_the_seed_is_run(name: str) -> None:
    assert {"exported_zaps_nonempty", "exported_zaps_mid_walk", "uses_before_flush"} <= set(
        load(CONFIGS / f"{name}.toml").obligations
    )


def test_everything_together_demands_what_only_notifiers_and_failures_bring() -> None:
    wanted = {"stale_io_faults", "notified_last", "failures_injected", "flushes_mid_dma"}
    assert wanted <= set(load(CONFIGS / "full.toml").obligations)


@pytest.mark.parametrize(
    "path", [path for path in SHIPPED if path.parent.name == "BUSTED"], ids=name_of
)
def test_a_scenario_that_must_fail_demands_more_than_a_delete(path: Path) -> None:
    assert len(load(path).obligations) >= 2
