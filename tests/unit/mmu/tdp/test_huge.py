"""Huge pages: faults map them where host, slot and policy agree; splitting keeps what is mapped;
collapsing lets them come back."""

from __future__ import annotations

import pytest

from mmu.machine.vcpu import Vcpu
from mmu.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES, MemoryRegion
from mmu.paging.spte import (
    MMU_WRITABLE,
    REMOVED_SPTE,
    SPTE_A,
    SPTE_D,
    SPTE_PS,
    SPTE_W,
    SPTE_X,
    pfn_of,
)
from mmu.tdp.fault import RetPf
from tests.conftest import reading, together, writing
from tests.model import Machine, w, x
from tests.unit.conftest import MakeMachine


@pytest.fixture
def vcpu(huge: Machine) -> Vcpu:
    """A vCPU of a VM with a slot at gfns 0..31 whose memory comes in "2M" pages of four frames."""
    huge.add_slot(0, 32, max_level=2)
    return huge.vcpu()


def split(machine: Machine, start: int = 0, end: int = 64, *, shared: bool = True) -> None:
    """kvm_tdp_mmu_try_split_huge_pages() under the lock it needs."""
    machine.mmu_lock.lock(shared)
    machine.vm.huge.try_split_huge_pages(machine.slot(), start, end, shared=shared)
    machine.mmu_lock.unlock(shared)


def collapse(machine: Machine) -> None:
    """kvm_tdp_mmu_zap_collapsible_sptes() under the lock it needs."""
    with reading(machine.mmu_lock):
        machine.vm.huge.zap_collapsible_sptes(machine.slot())


def test_splitting_what_is_no_huge_leaf_is_reported_and_survived(huge: Machine) -> None:
    """A walk that has lost its level meets a table of 4 KiB leaves, which have no smaller ones."""
    huge.abandon()
    huge.add_slot(0, 32, max_level=1)
    huge.run(huge.vcpu(), w(1))
    sp, index = huge.entry(huge.root(), 1)
    before = huge.kvm.stat.pages_4k.value
    with reading(huge.mmu_lock):
        huge.kvm.rcu.read_lock()
        huge.vm.huge.split_huge_page(
            sp, index, 1, sp.spt[index], huge.kvm.tables.allocate(), shared=True
        )
        huge.kvm.rcu.read_unlock()
    assert "O7 split-of-no-huge-leaf" in huge.news()
    assert huge.kvm.stat.pages_4k.value == before, "nothing was split, so there are no more leaves"


# Mapping.


@pytest.mark.parametrize(
    ("level", "gfn", "first"), [(2, 6, 4), (2, 31, 28), (3, 6, 0), (3, 31, 16)]
)
def test_one_fault_maps_a_whole_huge_page(huge: Machine, level: int, gfn: int, first: int) -> None:
    region = huge.add_slot(0, 32, max_level=level)
    vcpu = huge.vcpu()
    assert huge.fault(vcpu, gfn, write=True) is RetPf.FIXED
    pages = huge.kvm.geometry.pages(level)
    assert huge.leaves(huge.root()) == {first: region.ptes[first]}
    assert huge.huge_leaves() == [(first, level)]
    huge.run(vcpu, *[w(each) for each in range(first, first + pages)])
    assert vcpu.stat.pf_taken == 1
    assert [
        huge.kvm.stat.pages_4k.value,
        huge.kvm.stat.pages_2m.value,
        huge.kvm.stat.pages_1g.value,
    ] == [level == n for n in (1, 2, 3)]
    huge.assert_sound()


def test_kvm_maps_no_larger_than_it_may(make_machine: MakeMachine) -> None:
    machine = make_machine(huge_1g=1, huge_2m=1, max_level=2)
    machine.add_slot(0, 32, max_level=3)
    machine.run(machine.vcpu(), 6)
    assert machine.huge_leaves() == [(4, 2)]
    machine.assert_sound()


def test_a_huge_page_of_the_host_is_mapped_small_where_the_slot_cuts_it(huge: Machine) -> None:
    """lpage_info: a leaf lies inside the slot, and its gfn is aligned as its host address is."""
    region = huge.vm.host.mmap(16, max_level=2)
    huge.vm.host.assign(region, 2)
    huge.regions[0, 0] = region
    huge.vm.set_user_memory_region(MemoryRegion(0, 2, 16, region))
    huge.run(huge.vcpu(), 6)
    assert region.levels[4] == 2
    assert huge.huge_leaves() == []
    assert list(huge.leaves(huge.root())) == [6]
    huge.assert_sound()


@pytest.mark.parametrize(
    ("gfn", "npages", "large"), [(0, 7, [0]), (4, 3, []), (2, 10, [4, 8]), (1, 5, [])]
)
def test_a_huge_leaf_does_not_stick_out_of_its_slot(
    huge: Machine, gfn: int, npages: int, large: list[int]
) -> None:
    huge.add_slot(gfn, npages, max_level=2)
    huge.run(huge.vcpu(), *range(gfn, gfn + npages))
    assert [first for first, _ in huge.huge_leaves()] == large
    huge.assert_sound()


def test_a_second_fault_on_a_huge_page_is_spurious(huge: Machine, vcpu: Vcpu) -> None:
    huge.fault(vcpu, 5)
    assert huge.fault(vcpu, 6) is RetPf.SPURIOUS


@pytest.mark.parametrize("gfn", [4, 5, 7])
def test_a_huge_leaf_takes_the_place_of_a_table_and_is_flushed(
    huge: Machine, vcpu: Vcpu, gfn: int
) -> None:
    """The host has collapsed its pages: partial walks through the table must not survive."""
    region = huge.regions[0, 0]
    huge.run(vcpu, 5)
    with huge.invalidating(region, 4, 8):
        huge.vm.host.split(region, 4, 8)
    huge.run(vcpu, 5)
    assert huge.tables(huge.root()) == [(0, 2), (4, 1)]
    with huge.invalidating(region, 4, 8):
        assert huge.vm.host.collapse(region, 5, 2)
    flushes = huge.record("flush_begin")
    assert huge.fault(vcpu, gfn) is RetPf.FIXED
    assert flushes.args("flush_begin") == [("huge-over-tables", 4, 4)]
    assert huge.huge_leaves() == [(4, 2)]
    assert huge.tables(huge.root()) == [(0, 2)]
    huge.run(vcpu, 4, w(5))
    huge.assert_sound()


def test_who_loses_the_race_for_a_huge_leaf_retries(huge: Machine, vcpu: Vcpu) -> None:
    other = huge.vcpu()
    huge.run(vcpu, 0)
    huge.at("P4", lambda: together(huge.runtime, lambda: huge.fault(other, 6)))
    assert huge.fault(vcpu, 5) is RetPf.RETRY
    assert huge.fault(vcpu, 5) is RetPf.SPURIOUS


def test_an_invalidation_of_the_accessed_page_makes_a_huge_fault_stale(
    huge: Machine, vcpu: Vcpu
) -> None:
    huge.run(vcpu, 0)
    hva = huge.regions[0, 0].hva
    with writing(huge.mmu_lock):
        huge.kvm.invalidation.begin(hva + 5, hva + 6)
    assert huge.fault(vcpu, 5) is RetPf.RETRY
    with writing(huge.mmu_lock):
        huge.kvm.invalidation.end()
    assert huge.fault(vcpu, 5) is RetPf.FIXED


# Splitting.


@pytest.mark.parametrize("shared", [True, False])
def test_a_split_maps_the_same_frames_with_the_same_rights(
    huge: Machine, vcpu: Vcpu, shared: bool
) -> None:
    huge.run(vcpu, w(5), 9)
    leaf = huge.spte(4, 2)
    events = huge.record("flush_begin", "huge_page_split")
    split(huge, shared=shared)
    assert events.events == [("huge_page_split", (4, 2)), ("huge_page_split", (8, 2))], (
        "no flush: what it maps does not change"
    )
    assert [huge.spte(gfn) for gfn in range(4, 8)] == [
        leaf - SPTE_PS + (offset << 12) for offset in range(4)
    ]
    stat = huge.kvm.stat
    assert (stat.pages_4k.value, stat.pages_2m.value, stat.tdp_mmu_pages.value) == (8, 0, 3)
    huge.assert_sound()


def test_the_largest_pages_are_split_all_the_way_down(huge: Machine) -> None:
    region = huge.add_slot(0, 32, max_level=3)
    vcpu = huge.vcpu()
    huge.run(vcpu, w(5), 20)
    split(huge)
    assert huge.huge_leaves() == []
    assert huge.leaves(huge.root()) == dict(enumerate(region.ptes))
    assert huge.kvm.stat.pages_4k.value == 32
    huge.run(vcpu, *[w(gfn) for gfn in range(32)])
    huge.assert_sound()


@pytest.mark.parametrize(
    ("start", "end", "left"),
    [(4, 8, [0, 8]), (4, 12, [0]), (8, 8, [0, 4, 8]), (0, 4, [4, 8]), (6, 7, [0, 8]), (7, 9, [0])],
)
def test_only_what_the_range_touches_is_split(
    huge: Machine, vcpu: Vcpu, start: int, end: int, left: list[int]
) -> None:
    huge.run(vcpu, 0, 4, 8)
    split(huge, start, end)
    assert [gfn for gfn, _ in huge.huge_leaves()] == left
    huge.assert_sound()


def test_a_split_allocates_with_the_locks_dropped(huge: Machine, vcpu: Vcpu) -> None:
    huge.run(vcpu, 0, 4)
    held: list[tuple[int, bool]] = []
    plain = huge.kvm.tables.allocate

    def allocate() -> object:
        held.append((huge.mmu_lock.held_mode(), huge.kvm.rcu.read_held()))
        return plain()

    huge.kvm.tables.allocate = allocate  # type: ignore[method-assign, assignment]
    split(huge)
    assert held == [(0, False)] * 2
    huge.assert_sound()


@pytest.mark.parametrize("shared", [True, False])
def test_a_split_that_meets_a_change_leaves_no_page_over(
    huge: Machine, vcpu: Vcpu, shared: bool
) -> None:
    """While it allocates, somebody else zaps the huge leaf."""
    huge.run(vcpu, 0)
    region = huge.regions[0, 0]
    plain = huge.kvm.tables.allocate

    def allocate() -> object:
        together(huge.runtime, lambda: huge.discard(region, 0, 4))
        return plain()

    huge.kvm.tables.allocate = allocate  # type: ignore[method-assign, assignment]
    split(huge, shared=shared)
    assert huge.leaves(huge.root()) == {}
    huge.assert_sound()


def test_a_split_that_loses_its_compare_exchange_looks_again(huge: Machine, vcpu: Vcpu) -> None:
    """The CPU sets a bit of the huge leaf between the look and the link."""
    huge.run(vcpu, 0)
    sp, index = huge.entry(huge.root(), 0, 2)
    sp.spt.fetch_and(index, ~SPTE_A)
    plain, tries = huge.vm.huge.make_huge_page_split_spte, list[int]()

    def make(leaf: int, level: int) -> int:
        if not tries:
            sp.spt.store(index, leaf | SPTE_A)
        tries.append(leaf)
        return plain(leaf, level)

    huge.vm.huge.make_huge_page_split_spte = make  # type: ignore[method-assign]
    split(huge)
    assert [bool(leaf & SPTE_A) for leaf in tries] == [False, True]
    assert all(huge.spte(gfn) & SPTE_A for gfn in range(4))
    huge.assert_sound()


def test_a_dirty_bit_that_comes_during_an_exclusive_split_is_not_lost(
    huge: Machine, vcpu: Vcpu
) -> None:
    huge.run(vcpu, 0)
    sp, index = huge.entry(huge.root(), 0, 2)
    sp.spt.fetch_and(index, ~SPTE_D)
    plain = huge.vm.huge.make_huge_page_split_spte

    def make(leaf: int, level: int) -> int:
        vcpu.tlb.flush()
        assert vcpu.walk(1, write=True) & SPTE_D
        return plain(leaf, level)

    huge.vm.huge.make_huge_page_split_spte = make  # type: ignore[method-assign]
    split(huge, shared=False)
    assert not huge.spte(1) & SPTE_D
    huge.assert_sound()
    assert all(huge.kvm.pfn_dirtied[pfn] for pfn in huge.regions[0, 0].ptes[:4]), (
        "the host was told instead"
    )


def test_a_fault_that_needs_a_small_page_splits_the_huge_one(huge: Machine, vcpu: Vcpu) -> None:
    """Dirty logging without eager splitting."""
    huge.run(vcpu, w(5))
    sp, index = huge.entry(huge.root(), 5, 2)
    huge.slot().dirty_bitmap = huge.runtime.table(32)
    sp.spt.fetch_and(index, ~SPTE_W)
    vcpu.tlb.flush()
    assert huge.fault(vcpu, 5, write=True, present=True) is RetPf.FIXED
    assert huge.huge_leaves() == []
    assert [bool(huge.spte(gfn) & SPTE_W) for gfn in range(4, 8)] == [False, True, False, False]
    assert huge.slot().dirty_bitmap is not None
    assert [index for index, dirty in enumerate(huge.slot().dirty_bitmap or ()) if dirty] == [5]
    huge.assert_sound()


@pytest.mark.parametrize(("level", "executable"), [(1, True), (2, False)])
def test_small_pages_of_a_huge_one_that_the_mitigation_made_non_executable(
    huge: Machine, level: int, executable: bool
) -> None:
    leaf = huge.kvm.layout.leaf(16, 3, writable=True, host_writable=True, executable=False)
    smaller = huge.vm.huge.make_huge_page_split_spte(leaf, level)
    assert bool(smaller & SPTE_X) == executable
    assert bool(smaller & SPTE_PS) == (level > 1)
    assert pfn_of(smaller) == 16
    assert smaller & (SPTE_W | MMU_WRITABLE | SPTE_A | SPTE_D) == leaf & (
        SPTE_W | MMU_WRITABLE | SPTE_A | SPTE_D
    )


def test_an_access_tracked_page_stays_so_when_it_is_split(make_machine: MakeMachine) -> None:
    machine = make_machine(ad_bits=False)
    layout = machine.kvm.layout
    old = layout.mark_for_access_track(layout.leaf(16, 2, writable=True, host_writable=True))
    smaller = machine.vm.huge.make_huge_page_split_spte(old, 1)
    assert layout.is_access_tracked(smaller)
    assert layout.restore_access_track(smaller) & SPTE_X


def test_splitting_needs_the_lock_in_its_mode(huge: Machine, vcpu: Vcpu) -> None:
    with reading(huge.mmu_lock):
        huge.vm.huge.try_split_huge_pages(huge.slot(), 0, 64, shared=False)
    assert any("assert-held" in report for report in huge.news())


# Collapsing.


def logged_once(machine: Machine, vcpu: Vcpu, *gfns: int) -> None:
    """Logging was on for a while, so that the gfns are mapped small although the host has huge
    pages there."""
    machine.run(vcpu, *gfns)
    machine.log_dirty_pages()
    machine.run(vcpu, *[w(gfn) for gfn in gfns])


def test_tables_that_could_be_huge_leaves_are_removed_with_a_flush_each(
    huge: Machine, vcpu: Vcpu
) -> None:
    logged_once(huge, vcpu, 0, 9)
    assert huge.huge_leaves() == []
    events = huge.record("flush_begin", "prepare_zap_page")
    huge.set_flags(0)
    assert events.names() == ["prepare_zap_page", "flush_begin"] * 2
    assert events.args("flush_begin") == [("zap-atomic", 0, 4), ("zap-atomic", 8, 4)]
    assert huge.leaves(huge.root()) == {}
    huge.run(vcpu, 0, w(9))
    assert huge.huge_leaves() == [(0, 2), (8, 2)]
    huge.assert_sound()


def test_a_table_stays_where_the_host_has_small_pages(huge: Machine, vcpu: Vcpu) -> None:
    region = huge.regions[0, 0]
    huge.run(vcpu, 0, 4)
    with huge.invalidating(region, 4, 8):
        huge.vm.host.split(region, 4, 8)
    huge.run(vcpu, 5)
    before = huge.leaves(huge.root())
    collapse(huge)
    assert huge.leaves(huge.root()) == before
    huge.assert_sound()


def test_while_an_entry_is_frozen_others_leave_it_alone_and_find_it_free_afterwards(
    huge: Machine, vcpu: Vcpu
) -> None:
    """B06: the flush comes while nobody can map anything there."""
    logged_once(huge, vcpu, 0)
    other, root, seen = huge.vcpu(), huge.root(), list[tuple[int, RetPf]]()

    def look(reason: str, gfn: int, pages: int) -> None:
        if reason == "zap-atomic":
            together(
                huge.runtime, lambda: seen.append((huge.spte(0, 2, root), huge.fault(other, 1)))
            )

    frozen = huge.record("frozen_met")
    huge.on(flush_begin=look)
    huge.set_flags(0)
    assert seen == [(REMOVED_SPTE, RetPf.RETRY)]
    assert frozen.args("frozen_met") == [(1,)]
    assert huge.fault(other, 1) is RetPf.FIXED
    huge.assert_sound()


def test_the_flush_of_a_removed_table_comes_before_it_can_be_freed(
    huge: Machine, vcpu: Vcpu
) -> None:
    logged_once(huge, vcpu, 0)
    inside: list[bool] = []
    huge.on(
        flush_begin=lambda reason, *_: (
            inside.append(huge.kvm.rcu.read_held()) if reason == "zap-atomic" else None
        )
    )
    huge.set_flags(0)
    assert inside == [True]


def test_only_valid_roots_of_the_slots_address_space_are_collapsed(
    huge: Machine, vcpu: Vcpu
) -> None:
    huge.add_slot(0, 16, as_id=1, max_level=2)
    huge.plant(huge.root(as_id=1), 1)
    huge.run(vcpu, 0)
    events = huge.record("prepare_zap_page")
    collapse(huge)
    assert events.events == []
    assert list(huge.leaves(huge.root(as_id=1))) == [1]
    huge.abandon()


def test_fetches_are_mapped_huge_as_well(huge: Machine, vcpu: Vcpu) -> None:
    huge.run(vcpu, x(5))
    assert huge.huge_leaves() == [(4, 2)]
    assert huge.spte(4, 2) & SPTE_X


def test_a_slot_that_logs_dirty_pages_gets_small_pages_only(huge: Machine) -> None:
    huge.add_slot(0, 16, max_level=2, flags=KVM_MEM_LOG_DIRTY_PAGES)
    huge.run(huge.vcpu(), w(5), 9)
    assert huge.huge_leaves() == []
    assert sorted(huge.leaves(huge.root())) == [5, 9]
    huge.assert_sound()
