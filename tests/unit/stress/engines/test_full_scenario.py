"""configs/full.toml in short: every policy and every kernel is clean with everything going on, and
does what it is for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from mmu.export.policies import POLICIES
from mmu.kernels import SERIES
from stress.engines.session import Session
from stress.engines.threads import RunOutcome
from stress.scenario.load import load
from tests.engine import broken_run, run_scenario
from tests.patience import PATIENCE

FULL = Path(__file__).parents[4] / "configs" / "full.toml"
SOUND = [name for name in POLICIES if name != "invalidate-in-place"]


def run(*overrides: str, until: Iterable[str], at_least_s: float) -> dict[str, int]:
    """A run, which must be clean, for so long and until all these counters have moved, however slow
    the machine is; what it counted."""

    def enough(session: Session) -> bool:
        return session.elapsed() >= at_least_s and all(map(session.totals().get, until))

    scenario = load(FULL, ("disturbances.stutter_every_s=0.3", *overrides))
    session, outcome = run_scenario(scenario, until=enough)
    assert_clean(session, outcome)
    totals = session.totals()
    assert [name for name in until if not totals[name]] == []
    return totals


def assert_clean(session: Session, outcome: RunOutcome) -> None:
    assert [finding.report.render() for finding in session.findings()] == []
    assert session.errors() == ()
    assert outcome.completed
    assert outcome.clean_end


COMMON = (
    "vcpu_faults",
    "device_accesses",
    "io_faults",
    "host_ranges",
    "dirty_log_reads",
    "nx_toggles",
    "exports",
    "quiescent_checks",
)


@pytest.mark.parametrize("policy", SOUND)
def test_every_policy_is_clean_with_everything_going_on(policy: str) -> None:
    totals = run(f'vm.policy="{policy}"', until=COMMON, at_least_s=1.0)
    assert totals["process_exits"] == 1


@pytest.mark.parametrize("kernel", [name for name in SERIES if name != "6.6"])
def test_every_kernel_is_clean_with_everything_going_on(kernel: str) -> None:
    run(f'vm.kernel="{kernel}"', until=COMMON, at_least_s=1.0)


def test_the_negative_control_is_found_out() -> None:
    """It ends in a deadlock: an IO fault tries for ever, with slots_lock held, to map in a root
    that has become invalid."""
    attempt = broken_run(
        load(
            FULL,
            (
                "budget.until_met=true",
                f"budget.cap_s={PATIENCE}",
                "limits.stall_s=1.0",
                'vm.policy="invalidate-in-place"',
                f"expect.rules={list(POLICIES['invalidate-in-place'].expects)}",
            ),
        )
    )
    assert set(attempt.rules()) & set(POLICIES["invalidate-in-place"].expects)


# What each policy is for.

STEADY = (
    "actors.consumer.reexports_per_s=0",
    "actors.exporter.threads=0",
    "disturbances.fail_attach=0",
    "disturbances.fail_fd=0",
)
"""The root is exported for the whole run."""
NOBODY_ELSE = (
    "actors.exit.enabled=false",
    "actors.host.threads=0",
    "actors.nx.enabled=false",
    "actors.dirty_log.enabled=false",
)


def mechanism(policy: str, *overrides: str, until: Iterable[str]) -> dict[str, int]:
    return run(
        f'vm.policy="{policy}"', *STEADY, *NOBODY_ELSE, *overrides, until=until, at_least_s=0.5
    )


def test_the_seed_zaps_the_exported_root_with_every_fast_zap() -> None:
    totals = mechanism(
        "keep-valid", until=("exported_zaps_nonempty", "flushes_exported_zap", "memslot_deletes")
    )
    assert totals["exported_leaves_zapped"] >= totals["exported_zaps_nonempty"]
    assert totals["exported_zaps"] >= totals["memslot_deletes"]
    assert totals["importer_switches"] == totals["flushes_yield"] == 0


def test_the_yielding_zap_yields() -> None:
    busy = ("vm.vcpus=4", "memory.fixed_pages=512", "actors.vcpu.churn_share=0.3")
    totals = mechanism(
        "keep-valid-yielding", *busy, until=("exported_zaps_nonempty", "flushes_yield")
    )
    assert totals["flushes_yield"] <= totals["yields"]


def test_republish_switches_importers_to_new_roots() -> None:
    totals = mechanism(
        "republish", "disturbances.fail_switch=0", until=("importer_switches", "roots_freed")
    )
    assert totals["importer_switches_failed"] == 0
    assert totals["flushes_exported_zap"] == 0


def test_an_importer_that_never_switches_is_cut_off_and_comes_back() -> None:
    """After each revocation an IO fault binds it to the current root."""
    totals = mechanism(
        "republish",
        "disturbances.fail_switch=1.0",
        until=("importer_switches_failed", "device_accesses"),
    )
    assert totals["importer_switches"] == 0


def test_slot_leaves_leave_the_roots_alone() -> None:
    totals = mechanism(
        "slot-leaves", "vm.mmio_gen_bits=19", until=("memslot_deletes", "flushes_memslot_zap")
    )
    assert totals["fast_zaps"] == totals["flushes_exported_zap"] == 0
    assert totals["roots_zapped"] == totals["roots_invalidated"], "at the end of the VM only"


def test_a_separate_root_is_told_of_its_slot_only() -> None:
    wanted = ("fast_zaps", "roots_invalidated", "exported_zaps_nonempty", "importer_notifications")
    totals = mechanism("separate-root", until=wanted)
    assert totals["flushes_exported_zap"] == 0, "vCPUs need no flush for what they do not walk"


# What the disturbances are for.


def test_attaching_that_always_fails_harms_nobody() -> None:
    totals = run(
        "disturbances.fail_attach=1.0",
        "actors.exit.enabled=false",
        until=("attach_failures",),
        at_least_s=0.5,
    )
    assert totals["device_accesses"] == 0


def test_exports_that_always_fail_harm_nobody() -> None:
    totals = run(
        "disturbances.fail_fd=1.0",
        "actors.exit.enabled=false",
        until=("exports_refused",),
        at_least_s=0.5,
    )
    assert totals["exports"] == totals["io_faults"] == 0


def test_memslots_that_are_always_refused_harm_nobody() -> None:
    totals = run("disturbances.fail_prepare=1.0", until=("memslots_refused",), at_least_s=0.5)
    assert totals["memslot_moves"] == totals["memslot_deletes"] == totals["memslot_flags"] == 0
