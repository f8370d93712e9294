"""What could have happened: a counter is possible exactly when the scenario has what it needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from stress.observe.possible import _NEEDS, abilities, possible
from stress.scenario.counters import COUNTERS
from stress.scenario.load import load
from stress.scenario.types import Scenario

CONFIGS = Path(__file__).parents[4] / "configs"
EVERYTHING = load(CONFIGS / "full.toml")


def able(*overrides: str, name: str = "quick", threads: bool = True) -> set[str]:
    return set(possible(COUNTERS, load(CONFIGS / f"{name}.toml", overrides), threads=threads))


def test_only_counters_are_named() -> None:
    assert {name for names in _NEEDS.values() for name in names} <= set(COUNTERS)


def test_the_counters_keep_their_order() -> None:
    found = possible(COUNTERS, EVERYTHING, threads=True)
    assert found == [name for name in COUNTERS if name in found]


def test_every_need_can_be_met_by_some_scenario() -> None:
    """But those of a kernel that only recordings have."""
    other = load(
        CONFIGS / "full.toml",
        ('vm.policy="republish"', "memory.userfaults=true", "memory.host_level=1"),
    )
    leaves = load(CONFIGS / "full.toml", ('vm.policy="slot-leaves"',))
    met = {
        ability
        for scenario in (EVERYTHING, other, leaves)
        for ability in abilities(scenario, threads=True)
    }
    assert set(_NEEDS) - met == {"huge recovery"}


@pytest.mark.parametrize(
    ("override", "counter"),
    [
        ("vm.have_exported_tdp=false", "device_accesses"),
        ("vm.have_exported_tdp=false", "exports"),
        ("actors.consumer.devices=0", "exported_zaps"),
        ('vm.policy="republish"', "exported_zaps_mid_walk"),
        ("actors.memslot_worker.enabled=false", "memslot_deletes"),
        ("actors.memslot_worker.move_weight=0.0", "memslot_moves"),
        ("disturbances.stutter_every_s=100.0", "standstills"),
        ("disturbances={}", "importer_switches"),
        ("vm.ad_bits=false", "vcpu_pml_logged"),
        ("memory.smm_pages=0", "vcpu_prev_root_hits"),
    ],
)
def test_what_is_taken_away_cannot_happen(override: str, counter: str) -> None:
    assert counter not in able(override)


@pytest.mark.parametrize(
    ("override", "counter"),
    [
        ("actors.host.threads=1", "host_pages_discarded"),
        ("actors.nx.enabled=true", "attribute_changes"),
        ("vm.mmio_gen_bits=6", "mmio_wraps"),
        ("disturbances.fail_attach=0.1", "attach_failures"),
        ("actors.exit.enabled=true", "process_exits"),
        ('vm.policy="slot-leaves"', "flushes_memslot_zap"),
    ],
)
def test_what_is_added_can_happen(override: str, counter: str) -> None:
    assert counter not in able()
    assert counter in able(override)


def test_a_script_can_do_what_it_says() -> None:
    found = able(name="explore/delete-vs-dma", threads=False)
    assert {"memslot_deletes", "memslot_creates", "exported_zaps_mid_walk"} <= found
    assert not found & {
        "memslot_moves",
        "memslot_flags",
        "host_ranges",
        "delays",
        "standstills",
        "dirty_log_reads",
    }


def test_under_control_nothing_is_delayed() -> None:
    assert {"delays", "standstills"} <= able()
    assert not {"delays", "standstills"} & able(threads=False)


def test_what_happened_was_possible_whatever_the_scenario() -> None:
    assert "vcpu_accesses" in possible(COUNTERS, Scenario(), threads=True)
