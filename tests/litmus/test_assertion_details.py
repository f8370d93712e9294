"""The reference's assertion table (2.14), where a row asks for more than the right lock: what must
not have yielded or be frozen, which section must be open, whose reference must be held."""

from __future__ import annotations

from contextlib import suppress

import pytest

from mmu.errors import SelfDeadlock
from mmu.paging.spte import REMOVED_SPTE
from mmu.tdp.fault import Fault, RetPf
from mmu.tdp.iter import TdpIter
from stress.mutants import MUTANTS
from tests.conftest import forget_held_locks, rcu_section, reading, srcu_section, writing
from tests.litmus.bench import add_huge_slot, expect, fetch
from tests.litmus.test_assertion_table import (
    FOR_READ,
    FOR_WRITE,
    HELD,
    fault_exported,
    invalidate_all_roots,
    mmu_invalidate_retry,
    prepared,
    the_root,
    within,
    zap_all_fast,
    zap_exported_roots,
    zap_invalidated_roots,
)
from tests.model import Machine, machine_of

# zap_all_fast and the two root walks.


def test_zap_all_fast_in_an_rcu_section_is_reported_as_soon_as_it_has_to_yield() -> None:
    with machine_of() as machine:
        prepared(machine)
        machine.mmu_lock.needbreak = lambda: True  # type: ignore[method-assign]
        with machine.kvm.slots_lock, rcu_section(machine.kvm.rcu):
            zap_all_fast(machine)
        assert "O3 sleep-in-rcu" in machine.news()
        machine.abandon()


def test_zap_all_fast_in_an_rcu_section_is_always_reported() -> None:
    with machine_of() as machine:
        prepared(machine)
        with within(machine, "slots_lock rcu"):
            zap_all_fast(machine)
        machine.abandon()
        assert "O3 sleep-in-rcu" in machine.news()


def test_invalidating_needs_no_lock_when_the_vm_has_no_users() -> None:
    with machine_of() as machine:
        prepared(machine)
        held: list[int] = []
        machine.on(root_invalidated=lambda root: held.append(machine.mmu_lock.held_mode()))
        machine.destroy()
        assert held == [0]
        expect(machine)


def test_invalidating_needs_no_lock_when_the_vm_has_no_vcpus() -> None:
    with machine_of() as machine:
        machine.root()
        invalidate_all_roots(machine)
        machine.abandon()
        expect(machine)


def test_a_scheduled_root_must_be_invalid() -> None:
    with machine_of() as machine:
        prepared(machine).scheduled.value = True
        zap_invalidated_roots(machine)
        expect(machine, "O12 scheduled-but-valid")
        machine.abandon()


def test_the_exported_zap_holds_rcu() -> None:
    with machine_of() as machine:
        root = machine.export().metadata().root
        machine.plant(root, 1)
        held: list[bool] = []
        machine.on(spte_zapped=lambda *_: held.append(machine.kvm.rcu.read_held()))
        with writing(machine.mmu_lock):
            zap_exported_roots(machine)
        assert held == [True]
        expect(machine)


def test_the_exported_zap_without_rcu_is_reported() -> None:
    with machine_of(variants=[MUTANTS["rcu-section-dropped"]]) as machine:
        machine.export()
        with writing(machine.mmu_lock):
            zap_exported_roots(machine)
        expect(machine, "O3 suspicious-rcu-usage")


@pytest.mark.parametrize("shared", [True, False])
def test_a_root_that_is_zapped_must_be_referenced(shared: bool) -> None:
    with machine_of() as machine:
        root = machine.root()
        root.refcount.put()
        machine.mmu_lock.lock(shared)
        machine.vm.zapper.zap_root(root, shared)
        machine.mmu_lock.unlock(shared)
        expect(machine, "O4 zap-of-dead-root")
        machine.abandon()


@pytest.mark.parametrize("invalid", [False, True])
def test_the_last_put_must_meet_an_invalid_root(invalid: bool) -> None:
    with machine_of() as machine:
        root = machine.root()
        root.invalid.value = invalid
        with writing(machine.mmu_lock):
            machine.vm.roots.put_root(root, shared=False)
        expect(machine, *([] if invalid else ["O4 last-put"]))
        machine.abandon()


def test_an_iteration_asks_for_its_mode_at_each_step() -> None:
    with machine_of() as machine:
        prepared(machine)
        machine.root(as_id=1)
        roots = machine.vm.roots.each_yield_safe(shared=True)
        with reading(machine.mmu_lock):
            next(roots)
        expect(machine)
        with writing(machine.mmu_lock):
            next(roots)
        expect(machine, FOR_READ)
        with reading(machine.mmu_lock):
            assert list(roots) == []
        expect(machine)


def test_a_plain_walk_asks_for_the_lock_at_each_step() -> None:
    with machine_of() as machine:
        prepared(machine)
        machine.root(as_id=1)
        roots = machine.vm.roots.each()
        with writing(machine.mmu_lock):
            next(roots)
        expect(machine)
        next(roots)
        expect(machine, FOR_WRITE)


def iterator(machine: Machine) -> TdpIter:
    """An iterator at the leaf of gfn 1; the caller is inside RCU."""
    it = TdpIter(machine.kvm, the_root(machine), 1, 1, 64)
    while it.level > 1:
        it.next()
    return it


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("yielded", [True, False])
def test_a_setter_refuses_an_iterator_that_has_yielded(shared: bool, yielded: bool) -> None:
    with machine_of() as machine:
        prepared(machine)
        with within(machine, "read rcu" if shared else "write rcu"):
            it = iterator(machine)
            it.yielded = yielded
            if shared:
                assert machine.vm.writer.iter_set_spte_atomic(it, 0)
            else:
                machine.vm.writer.iter_set_spte(it, 0)
        expect(machine, *(["O7 set-after-yield"] if yielded else []))
        machine.abandon()


@pytest.mark.parametrize(
    ("shared", "old", "new"),
    [(True, REMOVED_SPTE, 0), (False, REMOVED_SPTE, 0), (False, 0, REMOVED_SPTE)],
)
def test_a_setter_refuses_frozen_values(shared: bool, old: int, new: int) -> None:
    with machine_of() as machine:
        prepared(machine)
        sp, index = machine.entry(the_root(machine), 3)
        sp.spt.store(index, old)
        with within(machine, "read rcu" if shared else "write rcu"):
            setter = machine.vm.writer.set_spte_atomic if shared else machine.vm.writer.set_spte
            setter(sp, index, 3, old, new)
        assert "O7 spte-transition" in machine.news()
        machine.abandon()


def test_the_atomic_setter_may_freeze() -> None:
    with machine_of() as machine:
        prepared(machine)
        sp, index = machine.entry(the_root(machine), 1)
        with within(machine, "read rcu"):
            assert machine.vm.writer.set_spte_atomic(sp, index, 1, sp.spt[index], REMOVED_SPTE)
        expect(machine)
        machine.abandon()


@pytest.mark.parametrize("shared", [True, False])
def test_an_iterator_yields_once_between_two_steps(shared: bool) -> None:
    with machine_of() as machine:
        prepared(machine)
        machine.mmu_lock.needbreak = lambda: True  # type: ignore[method-assign]
        with within(machine, "read rcu" if shared else "write rcu"):
            it = iterator(machine)
            it.next()
            assert machine.vm.yielding.iter_cond_resched(it, False, shared)
            expect(machine)
            machine.vm.yielding.iter_cond_resched(it, False, shared)
        expect(machine, "O15 bad-yield")


def test_yielding_without_an_rcu_section_is_reported_when_it_yields() -> None:
    with machine_of() as machine:
        prepared(machine)
        with writing(machine.mmu_lock):
            with rcu_section(machine.kvm.rcu):
                it = iterator(machine)
                it.next()
            machine.mmu_lock.needbreak = lambda: True  # type: ignore[method-assign]
            machine.vm.yielding.iter_cond_resched(it, False, False)
            machine.kvm.rcu.read_unlock()
        expect(machine, "O3 suspicious-rcu-usage", "O3 unlock-without-lock")


def test_asking_to_yield_without_an_rcu_section_is_always_reported() -> None:
    with machine_of() as machine:
        prepared(machine)
        with writing(machine.mmu_lock):
            with rcu_section(machine.kvm.rcu):
                it = iterator(machine)
                it.next()
            machine.vm.yielding.iter_cond_resched(it, False, False)
        expect(machine, "O3 suspicious-rcu-usage")


def test_asking_the_notifier_without_mmu_lock_is_reported() -> None:
    with machine_of() as machine:
        mmu_invalidate_retry(machine)
        expect(machine, HELD)


def test_the_lockless_fault_needs_a_reference_on_its_root() -> None:
    with machine_of() as machine:
        prepared(machine)
        vcpu = machine.vm.vcpus()[0]
        root = vcpu.root
        assert root is not None
        machine.vm.set_nx_huge_pages(True)
        fault = Fault()
        fault.gfn, fault.write, fault.present = 1, True, True
        assert machine.vm.faults.fast_page_fault(root, fault) is None, "the vCPU still holds it"
        expect(machine)
        vcpu.service_requests()
        machine.kvm.rcu.barrier()
        machine.vm.faults.fast_page_fault(root, fault)
        expect(machine, "O2 use-after-free")


# Exported roots.


def test_an_io_fault_under_slots_lock_is_silent() -> None:
    with machine_of() as machine:
        prepared(machine)
        machine.export()
        with machine.kvm.slots_lock:
            fault_exported(machine)
        expect(machine)


def test_an_io_fault_without_slots_lock_is_reported() -> None:
    with machine_of() as machine:
        prepared(machine)
        machine.export()
        fault_exported(machine)
        expect(machine, HELD, "O3 suspicious-srcu-usage")


def test_an_io_fault_under_srcu_alone_is_reported() -> None:
    with machine_of() as machine:
        prepared(machine)
        machine.export()
        with srcu_section(machine.kvm.srcu):
            fault_exported(machine)
        expect(machine, HELD)


@pytest.mark.parametrize(
    ("atomic", "report"), [("pages_lock", "O5 sleep-in-atomic"), ("rcu", "O3 sleep-in-rcu")]
)
def test_an_io_fault_in_atomic_context_is_reported(atomic: str, report: str) -> None:
    with machine_of() as machine:
        prepared(machine)
        machine.export()
        with within(machine, f"slots_lock {atomic}"):
            fault_exported(machine)
        assert report in machine.news()


@pytest.mark.parametrize("mode", ["read", "write"])
def test_an_io_fault_with_mmu_lock_held_is_reported(mode: str) -> None:
    with machine_of() as machine:
        prepared(machine)
        machine.export()
        with suppress(SelfDeadlock), within(machine, f"slots_lock {mode}"):
            fault_exported(machine)
        assert {"O5 sleep-in-atomic", f"O5 read-in-{mode}"} <= machine.news()
        machine.abandon()
        forget_held_locks()


def test_export_and_un_export_take_their_locks_in_order() -> None:
    """exported_tdp_cache_lock, then mmu_lock for write (2.1 rule 7)."""
    with machine_of() as machine:
        machine.export().put()
        orders = {
            (outer, inner, mode) for outer, _, inner, mode in machine.kvm.sync.lockdep.orders()
        }
        assert ("exported_tdp_cache_lock", "mmu_lock", "write") in orders
        expect(machine)


def test_the_recovery_worker_takes_srcu_mmu_lock_and_rcu_itself() -> None:
    with machine_of(huge_2m=4, nx_huge_pages=True) as machine:
        add_huge_slot(machine)
        assert fetch(machine, machine.vcpu(), 1) is RetPf.FIXED
        held: list[tuple[bool, int, bool]] = []
        kvm = machine.kvm
        machine.on(
            prepare_zap_page=lambda *_: held.append(
                (kvm.srcu.read_held(), kvm.mmu_lock.held_mode(), kvm.rcu.read_held())
            )
        )
        assert machine.vm.recover_nx_huge_pages() == 1
        assert held == [(True, 2, True)]
        expect(machine)
        machine.abandon()
