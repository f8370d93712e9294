"""I1 to I10: for each invariant of the reference's appendix A a program that keeps it, and breaches
that it alone notices."""

from __future__ import annotations

import pytest

from mmu.invariants import INVARIANTS
from mmu.memory.memslots import KVM_MEM_READONLY, MemoryRegion, Memslot
from mmu.memory.tlb import RemoteTlb
from mmu.paging.table import RootPage, RootRole, ShadowPage
from mmu.sync.rcu import Rcu
from mmu.tdp.fault import Fault, FaultHandler
from mmu.tdp.notifier import MmuNotifier
from mmu.tdp.roots import Roots
from mmu.tdp.write import SpteWriter
from mmu.tdp.zap import Zapper
from stress.mutants import MUTANTS
from tests.conftest import elsewhere, rcu_section, reading
from tests.litmus.bench import (
    add_huge_slot,
    assert_clean,
    assert_found,
    broken,
    dma,
    expect,
    litmus,
    meanwhile,
    move_pages,
    part,
    reclaim,
)
from tests.model import Machine, w


def freed(machine: Machine) -> int:
    """Table pages that RCU has freed."""
    return machine.kvm.tables.released.value - machine.kvm.tables.discarded.value


def test_there_is_a_check_for_each() -> None:
    assert list(INVARIANTS) == [f"I{number}" for number in range(1, 21)]


def drop_slot(machine: Machine, slot: int = 0) -> None:
    """Delete a slot and keep its memory, so that only what the MMU did can be wrong."""
    machine.vm.set_user_memory_region(MemoryRegion(slot, 0, 0))


# I1: a linked root is referenced; the last put meets an invalid, zapped, un-exported root.


class RawDecrement(Roots):
    """B01: dropping a reference forgets what has to happen to the last one."""

    def put_root(self, root: RootPage, shared: bool) -> None:
        root.refcount.put()


class NoReferenceOfItsOwn(Roots):
    """The TDP MMU keeps no reference on a root, so the last vCPU's put meets a valid one."""

    def allocate_root(self, role: RootRole) -> RootPage:
        root = super().allocate_root(role)
        root.refcount.put()
        return root


def run_drop_and_reload(machine: Machine) -> None:
    machine.add_slot(0, 8)
    vcpu = machine.vcpu()
    machine.run(vcpu, 1, 2)
    machine.vm.set_nx_huge_pages(True)
    vcpu.service_requests()
    machine.run(vcpu, 1, 2)


def test_i1_a_root_is_freed_by_its_last_reference_and_not_before() -> None:
    with litmus() as machine:
        freed = machine.record("root_freed")
        run_drop_and_reload(machine)
        assert len(freed.events) == 1
        assert_clean(machine)


def test_i1_sees_a_root_that_stays_linked_without_a_reference() -> None:
    with litmus(part(RawDecrement)) as machine:
        run_drop_and_reload(machine)
        assert broken(machine) == {"I1"}
        assert_found(machine, "INV I1")


def test_i1_the_last_put_of_a_valid_root_is_reported() -> None:
    with litmus(part(NoReferenceOfItsOwn)) as machine:
        machine.vcpu().unload()
        assert_found(machine, "O4 last-put")


def test_i1_the_last_put_of_a_root_that_was_not_zapped_is_reported() -> None:
    with litmus(MUTANTS["put-before-zap"]) as machine:
        machine.add_slot(0, 8)
        vcpu = machine.vcpu()
        machine.run(vcpu, 1)
        machine.at("P9", vcpu.service_requests)
        machine.vm.set_nx_huge_pages(True)
        assert "O4 last-put" in machine.news()
        machine.abandon()


# I2: exactly one reference of the TDP MMU's own, until the root is zapped and empty.


class ZapForgotten(Zapper):
    """The gifted reference is put, and the zap that should come before it is not done."""

    def zap_root(self, root: RootPage, shared: bool, *, flush: bool = False) -> None:
        if not shared:
            super().zap_root(root, shared, flush=flush)


def test_i2_a_zapped_root_is_empty_although_a_vcpu_still_holds_it() -> None:
    with litmus() as machine:
        machine.add_slot(0, 8)
        vcpu = machine.vcpu()
        machine.run(vcpu, 1)
        root = vcpu.root
        machine.vm.set_nx_huge_pages(True)
        assert root is not None
        assert (root.zapped.value, root.refcount.read()) == (True, 1)
        assert machine.leaves(root) == {}
        assert_clean(machine)


def test_i2_sees_a_root_whose_zap_was_forgotten() -> None:
    with litmus(part(ZapForgotten)) as machine:
        machine.add_slot(0, 8)
        machine.run(machine.vcpu(), 1)
        machine.vm.set_nx_huge_pages(True)
        assert broken(machine) == {"I2"}
        assert_found(machine, "INV I2")


# I3: the count is the sum of its holders.


class LeavesTheLoopEarly(Zapper):
    """A task that leaves a yield-safe loop early owns a reference (reference 2.3), and this one
    forgets it."""

    def zap_roots_leafs(self, as_id: int, start: int, end: int, *, flush: bool = False) -> bool:
        for root in self.roots.each_yield_safe(shared=False, as_id=as_id):
            return self.zap_leafs(root, start, end, can_yield=True, flush=flush)
        return flush


def test_i3_every_holder_is_counted() -> None:
    with litmus() as machine:
        region = machine.add_slot(0, 8)
        first, second = machine.vcpu(), machine.vcpu()
        device, hwpt = machine.attach(machine.export())
        machine.run(first, 1)
        machine.run(second, 2)
        second.set_guest_mode(True)
        machine.run(second, 2)
        assert dma(device, hwpt, 1)
        reclaim(machine, region)
        root = machine.root()
        assert root.refcount.read() == 1 + 2 + 1, (
            "its own, two vCPUs (one by its previous roots), the exporter"
        )
        assert_clean(machine)


def test_i3_sees_the_reference_that_a_loop_left_behind() -> None:
    with litmus(part(LeavesTheLoopEarly)) as machine:
        region = machine.add_slot(0, 8)
        machine.run(machine.vcpu(), 1)
        reclaim(machine, region)
        assert broken(machine) == {"I3"}
        assert_found(machine, "INV I3")


# I4: role.invalid is for ever, and set under the write lock.


class ValidAgain(Zapper):
    """A zapped root looks as good as new."""

    def zap_scheduled_root(self, root: RootPage) -> None:
        super().zap_scheduled_root(root)
        root.invalid.value = False


def test_i4_an_invalid_root_is_never_loaded_again() -> None:
    with litmus() as machine:
        first, second = machine.vcpu(), machine.vcpu()
        old = second.root
        machine.vm.set_nx_huge_pages(True)
        first.service_requests()
        assert old is not None
        assert first.root is not old
        assert old.invalid.value
        assert_clean(machine)


def test_i4_sees_a_root_that_became_valid_again() -> None:
    with litmus(part(ValidAgain)) as machine:
        machine.vcpu()
        machine.vm.set_nx_huge_pages(True)
        assert broken(machine) == {"I4"}
        assert_found(machine, "INV I4")


def test_i4_invalidating_without_the_write_lock_is_reported() -> None:
    with litmus() as machine:
        machine.vcpu()
        with reading(machine.mmu_lock):
            machine.vm.roots.invalidate_all_roots()
        expect(machine, "O5 assert-held-for-write")


# I5: exported implies valid, with one exporter behind the flag.


class FlagForgotten(Roots):
    """Something clears the flag of a root that is exported."""

    def put_root(self, root: RootPage, shared: bool) -> None:
        super().put_root(root, shared)
        root.exported.value = False


def test_i5_an_exported_root_stays_valid_through_everything() -> None:
    with litmus() as machine:
        machine.add_slot(0, 8)
        root = machine.export().metadata().root
        machine.delete_slot()
        machine.vm.set_nx_huge_pages(True)
        assert (root.exported.value, root.invalid.value) == (True, False)
        assert_clean(machine)


def test_i5_sees_an_exported_root_become_invalid_when_it_happens_and_at_rest() -> None:
    with litmus(MUTANTS["exported-root-invalidated"]) as machine:
        machine.add_slot(0, 8)
        machine.export()
        machine.delete_slot()
        expect(machine, "O12 exported-root-invalid")
        assert broken(machine) == {"I5"}
        assert_found(machine, "INV I5")


def test_i5_sees_an_exporter_without_the_flag() -> None:
    with litmus(part(FlagForgotten)) as machine:
        vcpu = machine.vcpu()
        machine.export()
        vcpu.unload()
        assert broken(machine) == {"I5"}
        assert_found(machine, "INV I5")


# I6: each table hangs from one entry, and knows which.


class WrongParent(SpteWriter):
    """The child is told of its neighbour's entry."""

    def link_sp(
        self,
        sp: ShadowPage,
        index: int,
        gfn: int,
        old: int,
        child: ShadowPage,
        *,
        shared: bool = True,
    ) -> bool:
        child.parent_index ^= 1
        return super().link_sp(sp, index, gfn, old, child, shared=shared)


def test_i6_tables_know_where_they_hang() -> None:
    with litmus() as machine:
        machine.add_slot(0, 64)
        machine.run(machine.vcpu(), 0, 5, 22, 63)
        assert len(machine.tables(machine.root())) > 3
        assert_clean(machine)


def test_i6_sees_a_table_that_names_another_entry_as_its_parent() -> None:
    with litmus(part(WrongParent)) as machine:
        machine.add_slot(0, 8)
        machine.run(machine.vcpu(), 1)
        assert broken(machine) == {"I6"}
        assert_found(machine, "INV I6")


# I7: a leaf maps what the host maps, aligned, with no more rights than host and slot give.


class WritesEverywhere(FaultHandler):
    """make_spte() does not ask whether the host and the slot allow writing."""

    def make_spte(self, fault: Fault) -> int:
        fault.host_writable = True
        return super().make_spte(fault)


class Deaf(MmuNotifier):
    """range_start unmaps nothing."""

    def unmap_gfn_range(self, slot: Memslot, start: int, end: int, *, flush: bool) -> bool:
        return flush


class FrameNotAligned(FaultHandler):
    """A huge leaf is made for the faulting frame instead of the first frame of the huge page."""

    def make_spte(self, fault: Fault) -> int:
        if fault.goal_level > 1:
            fault.pfn += 1
        return super().make_spte(fault)


def test_i7_leaves_follow_the_host() -> None:
    with litmus(huge_2m=4) as machine:
        region = add_huge_slot(machine)
        machine.add_slot(16, 4, slot=1, flags=KVM_MEM_READONLY)
        vcpu = machine.vcpu()
        machine.run(vcpu, 1, w(5), 17)
        assert {
            leaf: pfn % 4 for leaf, pfn in machine.leaves(machine.root()).items() if leaf < 16
        } == {0: 0, 4: 0}
        machine.assert_sound()
        move_pages(machine, region, 0, 4)
        machine.run(vcpu, 1, w(5), 17)
        assert_clean(machine)


def test_i7_sees_more_rights_than_the_slot_gives() -> None:
    with litmus(part(WritesEverywhere)) as machine:
        machine.add_slot(0, 4, flags=KVM_MEM_READONLY)
        machine.run(machine.vcpu(), 1)
        assert broken(machine) == {"I7"}
        assert_found(machine, "INV I7")


def test_i7_sees_a_frame_that_the_host_has_taken_back() -> None:
    with litmus(part(Deaf)) as machine:
        region = machine.add_slot(0, 4)
        machine.run(machine.vcpu(), 1)
        move_pages(machine, region)
        assert broken(machine) == {"I7"}
        assert_found(machine, "INV I7", "O6 leaf-of-invalidated-range")


def test_i7_sees_a_huge_leaf_with_an_unaligned_frame() -> None:
    with litmus(part(FrameNotAligned), huge_2m=4) as machine:
        add_huge_slot(machine)
        machine.fault(machine.vcpu(), 1)
        expect(machine, "O7 spte-transition")
        assert broken(machine) == {"I7"}
        assert_found(machine, "INV I7")


# I8: no leaf without a slot.


class KeepsExportedLeaves(Zapper):
    """The seed's zap is not there."""

    def zap_exported_roots(self) -> None:
        """Nothing."""


def test_i8_a_deleted_slot_leaves_no_leaf_behind() -> None:
    with litmus() as machine:
        machine.add_slot(0, 8)
        machine.add_slot(8, 8, slot=1)
        root = machine.export().metadata().root
        vcpu = machine.vcpu()
        machine.run(vcpu, 1, 9)
        drop_slot(machine)
        assert machine.leaves(root) == {}
        machine.run(vcpu, 9)
        assert_clean(machine)


def test_i8_sees_leaves_of_a_deleted_slot_when_the_call_returns_and_at_rest() -> None:
    with litmus(part(KeepsExportedLeaves)) as machine:
        machine.add_slot(0, 8)
        machine.export()
        machine.run(machine.vcpu(), 1)
        drop_slot(machine)
        expect(machine, "O6 leaf-of-deleted-slot")
        assert broken(machine) == {"I8"}
        assert_found(machine, "INV I8")


# I9: what is cached is justified by the tables.


class DirtyLogDoesNotFlush(RemoteTlb):
    """The flush that would make a new protection true is left out."""

    def flush_range(self, reason: str, gfn: int, pages: int) -> None:
        if reason != "dirty-log":
            super().flush_range(reason, gfn, pages)


def warm_up_and_delete(machine: Machine, *, device: bool) -> None:
    """A vCPU, and perhaps a device, cache gfn 1; then its slot goes, and every request is
    serviced."""
    machine.add_slot(0, 8)
    fd = machine.export()
    vcpu = machine.vcpu()
    if device:
        walker, hwpt = machine.attach(fd)
        assert dma(walker, hwpt, 1)
    else:
        machine.run(vcpu, 1)
    drop_slot(machine)
    vcpu.service_requests()


@pytest.mark.parametrize("device", [False, True])
def test_i9_nothing_is_cached_of_a_deleted_slot(device: bool) -> None:
    with litmus() as machine:
        warm_up_and_delete(machine, device=device)
        assert_clean(machine)


def test_i9_sees_a_vcpu_that_was_not_flushed() -> None:
    with litmus(MUTANTS["no-flush-after-exported-zap"]) as machine:
        warm_up_and_delete(machine, device=False)
        expect(machine, "O1 missing-flush")
        assert broken(machine) == {"I9"}
        assert_found(machine, "INV I9")


def test_i9_sees_a_device_that_was_not_told() -> None:
    with litmus(MUTANTS["importers-not-notified"]) as machine:
        warm_up_and_delete(machine, device=True)
        expect(machine, "O16 importer-not-told")
        assert broken(machine) == {"I9"}
        assert_found(machine, "INV I9")


# I10: removed tables are freed, after a grace period, and nobody uses freed ones.


class NeverFreed(SpteWriter):
    """A removed table is forgotten."""

    def free_table(self, sp: ShadowPage) -> None:
        """Nothing."""


class NoBarrier(Rcu):
    """VM destroy does not wait for the callbacks."""

    def barrier(self) -> None:
        """Nothing."""


def remove_tables(machine: Machine) -> None:
    """Map, then have the vCPU's root zapped with all its tables."""
    machine.add_slot(0, 8)
    machine.run(machine.vcpu(), 1)
    machine.vm.set_nx_huge_pages(True)


def test_i10_removed_tables_wait_for_readers_and_then_go() -> None:
    with litmus() as machine:
        with elsewhere(machine.runtime, rcu_section(machine.kvm.rcu)):
            remove_tables(machine)
            assert machine.kvm.tables.retired.value > freed(machine) == 0
            machine.assert_sound()
        machine.kvm.rcu.barrier()
        assert machine.kvm.tables.retired.value == freed(machine)
        assert_clean(machine)


def test_i10_sees_a_table_that_is_never_freed() -> None:
    with litmus(part(NeverFreed)) as machine:
        remove_tables(machine)
        assert broken(machine) == {"I10"}
        assert_found(machine, "INV I10")


def test_i10_freeing_without_a_grace_period_is_reported() -> None:
    with litmus(MUTANTS["table-freed-at-once"]) as machine:
        remove_tables(machine)
        expect(machine, "O3 free-without-rcu")
        machine.abandon()


def test_i10_a_table_that_a_walker_stands_in_is_used_after_free() -> None:
    with litmus(MUTANTS["table-freed-at-once"]) as machine:
        machine.add_slot(0, 8)
        vcpu = machine.vcpu()
        machine.run(vcpu, 1)
        assert vcpu.root is not None
        table, index = machine.entry(vcpu.root, 1)
        with rcu_section(machine.kvm.rcu):
            spt = table.spt
            meanwhile(machine, lambda: machine.vm.set_nx_huge_pages(True))
            assert spt[index] == 0
        expect(machine, "O3 free-without-rcu", "O2 use-after-free")
        machine.abandon()


def test_i10_destroying_the_vm_without_draining_callbacks_is_reported() -> None:
    with litmus(part(NoBarrier)) as machine:
        machine.add_slot(0, 8)
        machine.run(machine.vcpu(), 1)
        with elsewhere(machine.runtime, rcu_section(machine.kvm.rcu)):
            machine.destroy()
        expect(machine, "O11 leak-page-table-memory", "O11 leak-rcu-callbacks")


def test_i10_destroying_the_vm_waits_for_readers() -> None:
    with litmus() as machine:
        machine.add_slot(0, 8)
        machine.run(machine.vcpu(), 1)
        machine.kvm.rcu.barrier()
        machine.destroy()
        assert machine.kvm.rcu.pending() == 0
        assert machine.kvm.tables.live() == 0
        expect(machine)
