"""The kernel's own WARNs: what must not happen is reported where the kernel would say so, and what
follows is what the kernel does then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mmu.machine.vcpu import Vcpu
from mmu.memory.memslots import (
    GEN_UPDATE_IN_PROGRESS,
    KVM_MEM_LOG_DIRTY_PAGES,
    Memslot,
    Memslots,
    MemslotSet,
)
from mmu.paging.nxlist import PossibleNxHugePages
from mmu.paging.table import ShadowPage
from mmu.tdp.fault import Fault, FaultHandler, PageCache, RetPf
from mmu.variant import Variant
from tests.conftest import rcu_section, reading
from tests.model import Machine, machine_of, w, x


def variant(*parts: type) -> Variant:
    return Variant("test", "for this test", parts)


class KeepsHuge(FaultHandler):
    """Huge pages whether the slot logs or not."""

    def hugepage_adjust(self, fault: Fault, slot: Memslot) -> None:
        fault.req_level = fault.goal_level = 2
        fault.pfn &= -self.kvm.geometry.pages(2)


class Undecided(Vcpu):
    """The fault handler decides nothing, once."""

    decided = False

    def page_fault(
        self, gfn: int, write: bool, present: bool = False, fetch: bool = False
    ) -> RetPf:
        if not self.decided:
            self.decided = True
            return RetPf.INVALID
        return super().page_fault(gfn, write, present, fetch)


class FlagStays(PossibleNxHugePages):
    """A page leaves the list and keeps its flag."""

    def untrack(self, sp: ShadowPage) -> None:
        self._pages.value = tuple(page for page in self._pages.value if page is not sp)
        self._splits.add(-1)


def huge(machine: Machine, **slot: Any) -> None:
    machine.add_slot(8, 8, max_level=2, **slot)


def test_a_leaf_of_another_level_than_the_goal_s_is_not_installed() -> None:
    with machine_of() as machine:
        machine.add_slot(8, 8)
        root = machine.root()
        fault = Fault()
        fault.gfn, fault.pfn, fault.host_writable = 8, 9, True
        with reading(machine.mmu_lock), rcu_section(machine.kvm.rcu):
            result = machine.vm.faults.map_handle_target_level(root, 0, fault, 0)
        assert result is RetPf.RETRY
        assert machine.leaves(root) == {}
        machine.expect("O7 leaf-at-wrong-level")


def test_a_writable_huge_leaf_of_a_slot_that_logs_is_reported() -> None:
    with machine_of(variants=[variant(KeepsHuge)], huge_2m=8) as machine:
        huge(machine, flags=KVM_MEM_LOG_DIRTY_PAGES)
        machine.run(machine.vcpu(), w(9))
        machine.expect("O8 huge-leaf-while-logging")


@pytest.mark.parametrize("pfn", [12, 13, 14])
def test_a_huge_page_maps_gfns_and_frames_with_one_offset(pfn: int) -> None:
    with machine_of(huge_2m=8) as machine:
        huge(machine)
        vcpu = machine.vcpu()
        machine.run(vcpu, w(8))
        fault = Fault()
        fault.gfn, fault.pfn = 9, pfn
        machine.vm.faults.hugepage_adjust(fault, machine.slot())
        assert (fault.goal_level, fault.pfn) == (2, 12)
        machine.expect(*([] if pfn == 13 else ["O7 huge-offset"]))


def test_an_empty_cache_is_reported_and_serves_all_the_same() -> None:
    with machine_of() as machine:
        cache = PageCache(machine.kvm)
        page = cache.take()
        machine.expect("O5 cache-empty")
        machine.kvm.tables.discard(page)
        cache.topup()
        machine.kvm.tables.discard(cache.take())
        machine.expect()
        cache.drain()


def test_a_fault_of_a_vcpu_without_a_root_is_retried() -> None:
    with machine_of() as machine:
        machine.add_slot(8, 8)
        vcpu = machine.vcpu()
        vcpu.unload()
        assert machine.fault(vcpu, 8) is RetPf.RETRY
        assert vcpu.handle_mmio_page_fault(8) is RetPf.RETRY
        machine.expect("O12 fault-without-root")


def test_a_fault_that_is_not_decided_is_reported() -> None:
    with machine_of(variants=[variant(Undecided)]) as machine:
        machine.add_slot(8, 8)
        machine.run(machine.vcpu(), w(8))
        machine.expect("O10 fault-invalid")


def test_the_recovery_worker_expects_the_flag_to_go_with_the_page() -> None:
    with machine_of(
        variants=[variant(FlagStays)], huge_2m=8, nx_huge_pages=True, nx_recovery_ratio=1
    ) as machine:
        huge(machine)
        machine.run(machine.vcpu(), x(8))
        machine.vm.recover_nx_huge_pages()
        machine.expect("O9 nx-page-flag")


def test_the_recovery_worker_expects_the_flag_of_what_it_finds() -> None:
    with machine_of(huge_2m=8, nx_huge_pages=True, nx_recovery_ratio=1) as machine:
        huge(machine)
        machine.run(machine.vcpu(), x(8))
        (page,) = machine.kvm.possible_nx_huge_pages.pages()
        assert page.nx_disallowed is not None
        page.nx_disallowed.value = False
        machine.vm.recover_nx_huge_pages()
        machine.expect("O9 nx-page-flag")
        machine.abandon()


def test_a_range_end_needs_a_start() -> None:
    with machine_of() as machine:
        region = machine.add_slot(8, 8)
        with machine.invalidating(region, 0, 1):
            pass
        machine.expect()
        machine.vm.notifier.invalidate_range_end(region, 0, 1)
        machine.expect("O9 active-invalidate-underflow", "O9 invalidate-underflow")
        machine.abandon()


def begins_again(machine: Machine) -> None:
    """An update finds the bit of another one."""
    active: MemslotSet = machine.vm.memslots.peek(0)
    active.generation.value |= GEN_UPDATE_IN_PROGRESS
    machine.add_slot(24, 4, slot=1)


class StoresTheBit(Memslots):
    """The new generation says that an update is under way."""

    def advance_generation(self, new: MemslotSet, generation: int) -> None:
        super().advance_generation(new, generation | GEN_UPDATE_IN_PROGRESS)


@pytest.mark.parametrize(
    ("parts", "action"),
    [((), begins_again), ((StoresTheBit,), lambda machine: machine.add_slot(24, 4, slot=1))],
)
def test_an_update_begins_and_ends_outside_any_other(
    parts: tuple[type, ...], action: Callable[[Machine], object]
) -> None:
    with machine_of(variants=[variant(*parts)] if parts else []) as machine:
        action(machine)
        machine.expect("O13 update-in-progress")
        machine.abandon()


def test_an_invalidation_that_never_ends_is_left_at_destroy() -> None:
    with machine_of() as machine:
        machine.kvm.invalidation.in_progress.add(1)
        machine.destroy()
        machine.expect("O11 leak-invalidation")


def test_a_root_is_un_exported_once() -> None:
    with machine_of() as machine:
        fd = machine.export()
        with fd.exported.bind_lock:
            machine.vm.exporter.put_exported_tdp(fd.exported)
            machine.expect()
            machine.vm.exporter.put_exported_tdp(fd.exported)
        machine.expect("O12 not-exported")
        machine.vm.exporter.put_exported_tdp = lambda exported: None  # type: ignore[method-assign]
