"""configs/full.toml in short: every policy and every kernel is clean with everything going on, and does what it is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmu.export.policies import POLICIES
from mmu.kernels import KERNELS
from stress.engines.session import Session
from stress.engines.threads import Outcome
from stress.scenario.load import load
from tests.engine import run_scenario

FULL = Path(__file__).parents[3] / "configs" / "full.toml"
SOUND = [name for name in POLICIES if name != "invalidate-in-place"]


def run(*overrides: str, seconds: float = 2.5) -> dict[str, int]:
    """A short run, which must be clean; what it counted."""
    session, outcome = run_scenario(load(FULL, (f"budget.duration_s={seconds}", "disturbances.stutter_every_s=1.0", *overrides)))
    assert_clean(session, outcome)
    return session.totals()


def assert_clean(session: Session, outcome: Outcome) -> None:
    assert [finding.report.render() for finding in session.findings()] == []
    assert session.errors() == ()
    assert outcome.completed
    assert outcome.clean_end


COMMON = ("vcpu_faults", "device_accesses", "io_faults", "host_ranges", "dirty_log_reads", "nx_toggles", "exports", "quiescent_checks")


@pytest.mark.parametrize("policy", SOUND)
def test_every_policy_is_clean_with_everything_going_on(policy: str) -> None:
    totals = run(f'vm.policy="{policy}"')
    assert [name for name in COMMON if not totals[name]] == []
    assert totals["process_exits"] == 1


@pytest.mark.parametrize("kernel", [name for name in KERNELS if name != "6.6"])
def test_every_kernel_is_clean_with_everything_going_on(kernel: str) -> None:
    totals = run(f'vm.kernel="{kernel}"')
    assert [name for name in COMMON if not totals[name]] == []


def test_the_negative_control_is_found_out() -> None:
    """It ends in a deadlock: an IO fault tries for ever, with slots_lock held, to map in a root that has become invalid."""
    patience = ("budget.duration_s=10", "budget.settle_s=0.05", "limits.stall_s=1.0")
    session, _ = run_scenario(load(FULL, (*patience, 'vm.policy="invalidate-in-place"')))
    assert {finding.report.rule for finding in session.findings()} & set(POLICIES["invalidate-in-place"].expects)


# What each policy is for.

STEADY = ("actors.consumer.reexports_per_s=0", "actors.exporter.threads=0", "disturbances.fail_attach=0", "disturbances.fail_fd=0")
"""The root is exported for the whole run."""
NOBODY_ELSE = ("actors.exit.enabled=false", "actors.host.threads=0", "actors.nx.enabled=false", "actors.dirty_log.enabled=false")


def mechanism(policy: str, *overrides: str) -> dict[str, int]:
    return run(f'vm.policy="{policy}"', *STEADY, *NOBODY_ELSE, *overrides, seconds=1.5)


def test_the_seed_zaps_the_exported_root_with_every_fast_zap() -> None:
    totals = mechanism("keep-valid")
    assert totals["exported_leaves_zapped"] >= totals["exported_zaps_nonempty"] > 0
    assert totals["flushes_exported_zap"] > 0
    assert totals["exported_zaps"] >= totals["memslot_deletes"] > 0
    assert totals["importer_switches"] == totals["flushes_yield"] == 0


def test_the_yielding_zap_yields() -> None:
    totals = mechanism("keep-valid-yielding", "vm.vcpus=4", "memory.fixed_pages=512", "actors.vcpu.churn_share=0.3")
    assert totals["exported_zaps_nonempty"] > 0
    assert 0 < totals["flushes_yield"] <= totals["yields"]


def test_republish_switches_importers_to_new_roots() -> None:
    totals = mechanism("republish", "disturbances.fail_switch=0")
    assert totals["importer_switches"] > 0
    assert totals["importer_switches_failed"] == 0
    assert totals["roots_freed"] > 0
    assert totals["flushes_exported_zap"] == 0


def test_an_importer_that_never_switches_is_cut_off_and_comes_back() -> None:
    totals = mechanism("republish", "disturbances.fail_switch=1.0")
    assert totals["importer_switches_failed"] > 0
    assert totals["importer_switches"] == 0
    assert totals["device_accesses"] > 0, "after each revocation an IO fault binds it to the current root"


def test_slot_leaves_leave_the_roots_alone() -> None:
    totals = mechanism("slot-leaves", "vm.mmio_gen_bits=19")
    assert totals["memslot_deletes"] > 0
    assert totals["flushes_memslot_zap"] > 0
    assert totals["fast_zaps"] == totals["flushes_exported_zap"] == 0
    assert totals["roots_zapped"] == totals["roots_invalidated"], "at the end of the VM only"


def test_a_separate_root_is_told_of_its_slot_only() -> None:
    totals = mechanism("separate-root")
    assert totals["fast_zaps"] > 0
    assert totals["roots_invalidated"] > 0
    assert totals["exported_zaps_nonempty"] > 0
    assert totals["flushes_exported_zap"] == 0, "vCPUs need no flush for what they do not walk"
    assert totals["importer_notifications"] > 0


# What the disturbances are for.


def outcome_of(*overrides: str) -> dict[str, Any]:
    return run(*overrides, seconds=1.0)


def test_attaching_that_always_fails_harms_nobody() -> None:
    totals = outcome_of("disturbances.fail_attach=1.0", "actors.exit.enabled=false")
    assert totals["attach_failures"] > 0
    assert totals["device_accesses"] == 0


def test_exports_that_always_fail_harm_nobody() -> None:
    totals = outcome_of("disturbances.fail_fd=1.0", "actors.exit.enabled=false")
    assert totals["exports_refused"] > 0
    assert totals["exports"] == totals["io_faults"] == 0


def test_memslots_that_are_always_refused_harm_nobody() -> None:
    totals = outcome_of("disturbances.fail_prepare=1.0")
    assert totals["memslots_refused"] > 0
    assert totals["memslot_moves"] == totals["memslot_deletes"] == totals["memslot_flags"] == 0
