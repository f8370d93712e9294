"""I11 to I20: for each invariant of the reference's appendix A a program that keeps it, and
breaches that it alone notices."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mmu.export.device import Dma
from mmu.export.iommu import KvmHwpt
from mmu.machine.vcpu import Exit
from mmu.memory.host import Region
from mmu.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES, Memslots
from mmu.paging.spte import REMOVED_SPTE, SPTE_D, SPTE_X
from mmu.paging.table import ShadowPage
from mmu.posted import POSTED
from mmu.tdp.fault import Fault, FaultHandler, RetPf
from mmu.tdp.iter import TdpIter
from mmu.tdp.notifier import MmuNotifier
from mmu.tdp.write import SpteWriter
from stress.mutants import MUTANTS
from stress.scenario.types import Limits, Seconds
from tests.conftest import elsewhere
from tests.litmus.bench import (
    add_huge_slot,
    assert_clean,
    assert_found,
    both_ways,
    broken,
    defect,
    dma,
    expect,
    fetch,
    litmus,
    meanwhile,
    part,
    reclaim,
    set_flags,
)
from tests.model import Machine, w

# I11: only its freezer ends a freeze, and none outlasts its operation.


class NeverThawed(SpteWriter):
    """tdp_mmu_zap_spte_atomic() without its last step."""

    def zap_spte_atomic(self, it: TdpIter) -> bool:
        if not self.iter_set_spte_atomic(it, REMOVED_SPTE):
            return False
        self.tlb.flush_range("zap-atomic", it.gfn, 4)
        return True


class FreezeIgnored(FaultHandler):
    """A fault takes a frozen entry for one that it may change."""

    def map_handle_target_level(self, sp: ShadowPage, index: int, fault: Fault, old: int) -> RetPf:
        new = self.make_spte(fault)
        self.writer.set_spte_atomic(sp, index, fault.gfn & -4, old, new)
        return RetPf.FIXED


def split_and_collapse(
    machine: Machine, during_freeze: Callable[[], object] = lambda: None
) -> None:
    """Dirty logging splits a huge page; when it goes off, the table is frozen, flushed and
    cleared."""
    add_huge_slot(machine)
    vcpu = machine.vcpu()
    machine.run(vcpu, w(1))
    set_flags(machine, KVM_MEM_LOG_DIRTY_PAGES)
    machine.run(vcpu, w(1))
    machine.at("P6", during_freeze)
    set_flags(machine, 0)


def test_i11_a_fault_leaves_a_frozen_entry_alone_and_nothing_stays_frozen() -> None:
    with litmus(huge_2m=4) as machine:
        answers: list[RetPf] = []

        def fault_meanwhile() -> None:
            vcpu = machine.vm.vcpus()[0]
            meanwhile(machine, lambda: answers.append(machine.fault(vcpu, 1)))

        split_and_collapse(machine, fault_meanwhile)
        assert answers == [RetPf.RETRY]
        assert_clean(machine)


def test_i11_sees_an_entry_that_stays_frozen() -> None:
    with litmus(part(NeverThawed), huge_2m=4) as machine:
        split_and_collapse(machine)
        assert broken(machine) == {"I11"}
        assert_found(machine, "INV I11")


def test_i11_somebody_else_changing_a_frozen_entry_is_reported() -> None:
    with litmus(part(FreezeIgnored), huge_2m=4) as machine:

        def fault_meanwhile() -> None:
            meanwhile(machine, lambda: machine.fault(machine.vm.vcpus()[0], 1))

        split_and_collapse(machine, fault_meanwhile)
        assert "O7 spte-transition" in machine.news()
        assert "frozen (REMOVED) entry was changed" in machine.splats()
        machine.abandon()


# I12: sequence and in-progress discipline.


class NeverEnds(MmuNotifier):
    """range_end forgets kvm_mmu_invalidate_end()."""

    def invalidate_range_end(self, region: Region, first: int, last: int) -> None:
        with self.kvm.mn_invalidate_lock:
            self.kvm.mn_active_invalidate_count.fetch_add(-1)


class SlotsChangeMeanwhile(Memslots):
    """A memslot update does not wait for invalidations to end (B64)."""

    def wait_for_invalidations(self, then: Callable[[], None]) -> None:
        then()


class SequenceIgnored(FaultHandler):
    """A fault asks the root only, not the notifier."""

    def is_page_fault_stale(self, root: object, fault: Fault) -> bool:
        return False


def test_i12_start_and_end_are_balanced() -> None:
    with litmus() as machine:
        region = machine.add_slot(0, 8)
        machine.run(machine.vcpu(), 1)
        before = machine.kvm.invalidation.seq.value
        reclaim(machine, region)
        assert machine.kvm.invalidation.seq.value == before + 1
        assert_clean(machine)


def test_i12_sees_an_invalidation_that_never_ends() -> None:
    with litmus(part(NeverEnds)) as machine:
        reclaim(machine, machine.add_slot(0, 8))
        assert broken(machine) == {"I12"}
        assert_found(machine, "O9 I12")


def test_i12_an_end_without_its_start_is_reported() -> None:
    with litmus(part(SlotsChangeMeanwhile)) as machine:
        region = machine.vm.host.mmap(4)
        machine.vm.notifier.invalidate_range_start(region, 0, 4)
        machine.regions[0, 0] = region
        set_flags(machine, 0)
        machine.vm.notifier.invalidate_range_end(region, 0, 4)
        expect(machine, "O9 invalidate-underflow")
        assert broken(machine) == {"I12"}
        assert_found(machine, "O9 I12")


def test_i12_a_snapshot_older_than_the_invalidation_maps_a_released_page() -> None:
    with litmus(part(SequenceIgnored)) as machine:
        region = machine.add_slot(0, 8)
        vcpu = machine.vcpu()
        machine.at("P2", lambda: meanwhile(machine, lambda: reclaim(machine, region)))
        assert machine.fault(vcpu, 1) is RetPf.FIXED
        assert broken(machine) == {"I7"}, "the leaf maps what was released"
        machine.run(vcpu, 1)
        expect(machine, "O6 stale-map")
        machine.abandon()


# I13: the numbers are right.


class TablesNotCounted(SpteWriter):
    """tdp_account_mmu_page() is forgotten."""

    def account_linked(self) -> None:
        """Nothing."""


def test_i13_statistics_equal_a_walk() -> None:
    with litmus(huge_2m=4) as machine:
        add_huge_slot(machine)
        machine.add_slot(16, 16, slot=1)
        machine.run(machine.vcpu(), 1, 5, 17, 18)
        stat = machine.kvm.stat
        assert (stat.pages_4k.value, stat.pages_2m.value, stat.tdp_mmu_pages.value) == (2, 2, 3)
        assert_clean(machine)


def test_i13_sees_a_table_that_was_not_counted() -> None:
    with litmus(part(TablesNotCounted)) as machine:
        machine.add_slot(0, 8)
        machine.run(machine.vcpu(), 1)
        assert broken(machine) == {"I13"}
        assert_found(machine, "O9 I13")


# I14: the list of possible huge pages.


class StaysOnTheList(SpteWriter):
    """A table is unlinked, but not taken off possible_nx_huge_pages."""

    def unlink_sp(self, sp: ShadowPage, shared: bool) -> None:
        self.kvm.stat.tdp_mmu_pages.fetch_add(-1)


def fetch_and_forget(machine: Machine) -> None:
    """A fetch makes small pages of a huge one; then the root goes with them."""
    add_huge_slot(machine)
    vcpu = machine.vcpu()
    assert fetch(machine, vcpu, 1) is RetPf.FIXED
    assert machine.kvm.stat.nx_lpage_splits.value == 1
    machine.assert_sound()
    machine.vm.set_nx_huge_pages(False)
    vcpu.service_requests()
    machine.kvm.rcu.barrier()


def test_i14_a_table_leaves_the_list_when_it_is_unlinked() -> None:
    with litmus(huge_2m=4, nx_huge_pages=True) as machine:
        fetch_and_forget(machine)
        assert machine.kvm.possible_nx_huge_pages.pages() == ()
        assert_clean(machine)


def test_i14_sees_a_freed_table_on_the_list() -> None:
    with litmus(part(StaysOnTheList), huge_2m=4, nx_huge_pages=True) as machine:
        fetch_and_forget(machine)
        assert broken(machine) == {"I14"}
        assert_found(machine, "O9 I14")


# I15: nothing that was written is forgotten.


class DirtyForgotten(SpteWriter):
    """D is taken away, and nobody tells the host."""

    def _set_dirty(self, spte: int, level: int) -> None:
        """Nothing."""


def lose_to_the_cpu(base: type[SpteWriter], keep: bool) -> type[SpteWriter]:
    """A setter during which the CPU sets a D bit: between the snapshot and the write. `keep` is
    xchg, else a plain store."""

    class Meanwhile(base):  # type: ignore[misc,valid-type]
        act: Callable[[], object] | None = None

        def has_volatile_bits(self, spte: int, level: int) -> bool:
            act, Meanwhile.act = (Meanwhile.act, None) if level == 1 else (None, Meanwhile.act)
            if act is not None:
                act()
            return keep and super().has_volatile_bits(spte, level)

    return Meanwhile


def log_and_write(machine: Machine) -> None:
    """D bits are cleared by logging, set by the CPU, cleared again."""
    machine.add_slot(0, 8)
    vcpu = machine.vcpu()
    machine.run(vcpu, w(1))
    set_flags(machine, KVM_MEM_LOG_DIRTY_PAGES)
    machine.run(vcpu, w(1))
    assert vcpu.dirtied
    assert machine.vm.get_dirty_log(0) == {1}


def test_i15_a_dirty_bit_is_handed_on_when_it_is_cleared() -> None:
    with litmus() as machine:
        log_and_write(machine)
        assert_clean(machine)


def test_i15_sees_a_dirty_bit_that_nobody_was_told_of() -> None:
    with litmus(part(DirtyForgotten)) as machine:
        log_and_write(machine)
        assert broken(machine) == {"I15"}
        assert_found(machine, "O8 I15")


@pytest.mark.parametrize("keep", [True, False], ids=["xchg", "plain-store"])
def test_i15_a_bit_that_the_cpu_sets_under_the_setter_survives_an_exchange_only(keep: bool) -> None:
    """B56's shape: what hardware may change has to be exchanged, not overwritten."""
    racing = lose_to_the_cpu(SpteWriter, keep)
    with litmus(part(racing)) as machine:
        region = machine.add_slot(0, 8)
        vcpu = machine.vcpu()
        machine.run(vcpu, w(1))
        set_flags(machine, KVM_MEM_LOG_DIRTY_PAGES)
        vcpu.service_requests()
        assert vcpu.root is not None
        sp, index = machine.entry(vcpu.root, 1)
        assert not sp.spt[index] & SPTE_D
        racing.act = lambda: vcpu.walk(1, write=True)  # type: ignore[attr-defined]
        reclaim(machine, region)
        vcpu.service_requests()
        assert vcpu.dirtied
        assert broken(machine) == (set() if keep else {"I15"})
        assert_found(machine, *([] if keep else ["O8 I15"]))


# I16: MMIO SPTEs are honoured by the current generation only.


def wrap_the_generation(machine: Machine) -> Exit:
    """An MMIO SPTE is made; a slot comes to its gfn, updates go on until the SPTE's generation is
    current; it is touched."""
    machine.export()
    vcpu = machine.vcpu()
    assert machine.run(vcpu, 40) is Exit.MMIO
    machine.add_slot(40, 4, slot=5)
    machine.add_slot(0, 4, slot=6)
    machine.delete_slot(6)
    assert machine.vm.memslots.peek(0).generation.value % 8 == 0, "as when the SPTE was made"
    assert broken(machine) <= {"I16"}
    return machine.run(vcpu, 40)


def test_i16_an_mmio_spte_does_not_survive_the_wrap_of_its_generation() -> None:
    with litmus(mmio_gen_bits=3) as machine:
        assert wrap_the_generation(machine) is Exit.INTR
        assert_clean(machine)


def test_i16_sees_an_ancient_mmio_spte_that_is_current_again() -> None:
    with litmus(POSTED["r9-mmio-sptes-survive"], mmio_gen_bits=3) as machine:
        assert wrap_the_generation(machine) is Exit.MMIO
        expect(machine, "O13 stale-mmio-honoured")
        assert broken(machine) == {"I16"}
        assert_found(machine, "O13 I16")


# I17: no executable huge leaf under the mitigation.


class PolicyIgnored(FaultHandler):
    """make_spte() does not ask for the policy."""

    def make_spte(self, fault: Fault) -> int:
        return super().make_spte(fault) | SPTE_X


def test_i17_huge_leaves_are_not_executable_under_the_mitigation() -> None:
    with litmus(huge_2m=4, nx_huge_pages=True) as machine:
        add_huge_slot(machine)
        vcpu = machine.vcpu()
        machine.run(vcpu, 1)
        fetch(machine, vcpu, 5)
        assert machine.kvm.stat.pages_2m.value == 1
        assert_clean(machine)


def test_i17_sees_an_executable_huge_leaf() -> None:
    with litmus(part(PolicyIgnored), huge_2m=4, nx_huge_pages=True) as machine:
        add_huge_slot(machine)
        machine.run(machine.vcpu(), 1)
        expect(machine, "O14 executable-huge-leaf")
        assert broken(machine) == {"I17"}
        assert_found(machine, "O14 I17")


# I18: importers hear of everything, from register to unregister.


class KeepsWalking(KvmHwpt):
    """The importer is unregistered, the hardware keeps its root."""

    def unbind(self) -> None:
        self.fd.unregister_importer(self)


def test_i18_an_importer_hears_of_every_flush_between_register_and_unregister() -> None:
    with litmus() as machine:
        machine.add_slot(0, 8)
        device, hwpt = machine.attach(machine.export())
        called = machine.record("importer_called")
        assert dma(device, hwpt, 1)
        machine.delete_slot()
        hwpt.destroy()
        machine.add_slot(0, 8)
        machine.run(machine.vcpu(), 1)
        machine.delete_slot()
        assert [args[0] for args in called.args("importer_called")] == [hwpt]
        assert device.root.value is None
        assert_clean(machine)


@pytest.mark.parametrize("closed", [False, True])
def test_i18_sees_a_device_that_walks_a_root_without_being_told_of_its_flushes(
    closed: bool,
) -> None:
    with litmus(part(KeepsWalking)) as machine:
        fd = machine.export()
        _, hwpt = machine.attach(fd)
        hwpt.destroy()
        if closed:
            fd.put()
        assert broken(machine) == {"I18"}
        assert_found(machine, "INV I18")


def test_i18_an_importer_that_is_not_told_is_reported() -> None:
    with litmus(MUTANTS["importers-not-notified"]) as machine:
        machine.add_slot(0, 8)
        device, hwpt = machine.attach(machine.export())
        assert dma(device, hwpt, 1)
        machine.delete_slot()
        expect(machine, "O16 importer-not-told")
        assert device.transact(1, write=False) is Dma.WRONG
        expect(machine, "O1 stale-tlb")
        machine.abandon()


# I19: IO faults are answered as the slots say.


@both_ways
def test_i19_an_io_fault_is_a_success_if_and_only_if_it_can_be_mapped(posted: bool) -> None:
    with litmus(*defect("r7-spurious-is-failure", posted)) as machine:
        machine.add_slot(0, 8)
        _, hwpt = machine.attach(machine.export())
        assert hwpt.io_fault(1, write=True)
        assert not hwpt.io_fault(40, write=True)
        assert_clean(machine)
        assert hwpt.io_fault(1, write=True) is not posted, "it is mapped already"
        if posted:
            expect(machine, "O16 io-fault-answer")
            assert broken(machine) == {"I19"}
            assert_found(machine, "INV I19")
        else:
            assert_clean(machine)


# I20: lock order and bounded holds.


class SlotsLockInFault(FaultHandler):
    """A vCPU's fault takes slots_lock inside its SRCU section (reference 2.1 rule 2)."""

    def faultin_pfn(self, fault: Fault) -> RetPf:
        if self.kvm.slots_lock.held():
            return super().faultin_pfn(fault)
        with self.kvm.slots_lock:
            return super().faultin_pfn(fault)


class SrcuForgotten(MmuNotifier):
    """test_young() leaves without its SRCU unlock."""

    def test_young(self, region: Region, first: int, last: int) -> bool:
        self.kvm.srcu.read_lock()
        return super().test_young(region, first, last)


def test_i20_everything_at_once_keeps_the_order_and_holds_nothing_at_the_end() -> None:
    with litmus(huge_2m=4) as machine:
        region = add_huge_slot(machine)
        vcpu = machine.vcpu()
        device, hwpt = machine.attach(machine.export())
        machine.run(vcpu, w(1))
        assert dma(device, hwpt, 5, write=True)
        set_flags(machine, KVM_MEM_LOG_DIRTY_PAGES)
        machine.run(vcpu, w(1))
        machine.vm.get_dirty_log(0)
        machine.vm.set_nx_huge_pages(True)
        machine.vm.recover_nx_huge_pages()
        reclaim(machine, region)
        machine.vm.notifier.clear_young(region, 0, 16)
        machine.vm.change_attributes(0, 8)
        machine.delete_slot()
        assert_clean(machine)


def test_i20_a_lock_taken_against_the_order_is_reported_though_nothing_hangs() -> None:
    with litmus(part(SlotsLockInFault)) as machine:
        machine.add_slot(0, 8)
        machine.run(machine.vcpu(), 1)
        expect(machine, "O5 circular-dependency")


def test_i20_sees_a_lock_that_is_held_at_rest() -> None:
    with litmus() as machine:
        with elsewhere(machine.runtime, machine.kvm.slots_lock):
            assert broken(machine) == {"I20"}
        assert_clean(machine)


def test_i20_a_section_that_its_thread_never_left_is_reported() -> None:
    with litmus(part(SrcuForgotten)) as machine:
        region = machine.add_slot(0, 8)
        meanwhile(machine, lambda: machine.vm.notifier.test_young(region, 0, 8))
        expect(machine, "O5 held-at-exit")
        machine.abandon()


def test_i20_a_hold_beyond_its_bound_is_reported() -> None:
    with litmus(limits=Limits(write_hold_s=Seconds(1e-9))) as machine:
        machine.vcpu()
        expect(machine, "O10 long-write-hold")
        machine.abandon()
