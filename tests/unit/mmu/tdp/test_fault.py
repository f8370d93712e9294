"""Faults: each answer of the handler has its one cause, and nothing is installed from stale
knowledge (reference 2.8)."""

from __future__ import annotations

import pytest

from mmu.errors import KvmError
from mmu.machine.vcpu import Vcpu
from mmu.memory.memslots import KVM_MEM_READONLY, Change
from mmu.paging.spte import HOST_WRITABLE, REMOVED_SPTE, SPTE_W
from mmu.tdp.fault import Fault, PageCache, RetPf
from tests.conftest import elsewhere, rcu_section, reading, together, writing
from tests.model import REAL, Machine
from tests.unit.conftest import MakeMachine


@pytest.fixture
def vcpu(machine: Machine) -> Vcpu:
    """A vCPU of a VM with one slot at gfns 0..15."""
    machine.add_slot(0, 16)
    return machine.vcpu()


# The answers.


@pytest.mark.parametrize("write", [True, False])
def test_a_first_access_is_fixed(machine: Machine, vcpu: Vcpu, write: bool) -> None:
    assert machine.fault(vcpu, 5, write) is RetPf.FIXED
    root = machine.root()
    assert machine.leaves(root) == {5: machine.regions[0, 0].ptes[5]}
    assert machine.tables(root) == [(0, 2), (4, 1)]
    assert machine.kvm.stat.tdp_mmu_pages.value == 2
    sp, index = machine.entry(root, 5)
    assert sp.spt[index] & SPTE_W, "mapped writable as soon as the host allows it, even for a read"
    machine.assert_sound()


def test_neighbours_share_the_tables(machine: Machine, vcpu: Vcpu) -> None:
    for gfn in (4, 5, 6, 7, 8):
        assert machine.fault(vcpu, gfn) is RetPf.FIXED
    assert machine.tables(machine.root()) == [(0, 2), (4, 1), (8, 1)]
    assert sorted(machine.leaves(machine.root())) == [4, 5, 6, 7, 8]


def test_a_second_vcpu_finds_it_done(machine: Machine, vcpu: Vcpu) -> None:
    other = machine.vcpu()
    assert other.root is vcpu.root
    assert machine.fault(vcpu, 5) is RetPf.FIXED
    assert machine.fault(other, 5, write=True) is RetPf.SPURIOUS
    assert (vcpu.stat.pf_fixed, other.stat.pf_spurious) == (1, 1)


def test_a_gfn_without_a_slot_is_emulated_and_maps_nothing(machine: Machine, vcpu: Vcpu) -> None:
    assert machine.fault(vcpu, 16) is RetPf.EMULATE
    assert machine.leaves(machine.root()) == {}
    assert vcpu.stat.pf_emulate == 1


def test_an_invalid_slot_is_to_be_retried(machine: Machine, vcpu: Vcpu) -> None:
    """Between the two swaps of a DELETE the slot is there but INVALID: whoever faults waits for the
    outcome."""
    results: list[RetPf] = []
    machine.at(
        "P14", lambda: together(machine.runtime, lambda: results.append(machine.fault(vcpu, 5)))
    )
    assert machine.delete_slot() is Change.DELETE
    assert results == [RetPf.RETRY]
    assert vcpu.stat.pf_retry == 1
    assert machine.leaves(machine.root()) == {}


def test_a_root_that_became_invalid_is_stale(machine: Machine, vcpu: Vcpu) -> None:
    stale = machine.record("fault_stale")
    with writing(machine.mmu_lock):
        machine.vm.roots.invalidate_all_roots()
    assert machine.fault(vcpu, 5) is RetPf.RETRY
    assert stale.args("fault_stale") == [(vcpu, 5, "root")]
    assert vcpu.root is not None
    assert machine.leaves(vcpu.root) == {}


def test_an_invalidation_after_the_snapshot_makes_the_frame_stale(
    machine: Machine, vcpu: Vcpu
) -> None:
    stale = machine.record("fault_stale")
    machine.at("P2", lambda: machine.kvm.invalidation.seq.fetch_add(1))
    assert machine.fault(vcpu, 5) is RetPf.RETRY
    assert stale.args("fault_stale") == [(vcpu, 5, "notifier")]
    assert machine.fault(vcpu, 5) is RetPf.FIXED


def test_an_invalidation_before_the_snapshot_does_no_harm(machine: Machine, vcpu: Vcpu) -> None:
    machine.kvm.invalidation.seq.fetch_add(1)
    assert machine.fault(vcpu, 5) is RetPf.FIXED


def test_the_snapshot_is_taken_before_the_frame_is_looked_up(machine: Machine, vcpu: Vcpu) -> None:
    frames_at_p1: list[int] = []
    machine.at("P1", lambda: frames_at_p1.append(machine.regions[0, 0].ptes[5]))
    machine.at("P1", lambda: machine.kvm.invalidation.seq.fetch_add(1))
    assert machine.fault(vcpu, 5) is RetPf.RETRY
    assert frames_at_p1 == [0]


def test_an_invalidation_in_progress_makes_the_faults_in_its_range_stale(
    machine: Machine, vcpu: Vcpu
) -> None:
    hva = machine.regions[0, 0].hva
    with writing(machine.mmu_lock):
        machine.kvm.invalidation.begin(hva + 5, hva + 6)
    assert [machine.fault(vcpu, gfn) for gfn in (4, 5, 6)] == [
        RetPf.FIXED,
        RetPf.RETRY,
        RetPf.FIXED,
    ]
    with writing(machine.mmu_lock):
        machine.kvm.invalidation.end()
    assert machine.fault(vcpu, 5) is RetPf.FIXED


@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_frozen_entry_is_to_be_retried(machine: Machine, vcpu: Vcpu, level: int) -> None:
    frozen = machine.record("frozen_met")
    assert machine.fault(vcpu, 4) is RetPf.FIXED
    sp, index = machine.entry(machine.root(), 5, level)
    before = sp.spt.xchg(index, REMOVED_SPTE)
    assert machine.fault(vcpu, 5) is RetPf.RETRY
    assert frozen.args("frozen_met") == [(5,)]
    assert sp.spt[index] == REMOVED_SPTE, "nobody but the freezer may change it"
    sp.spt.store(index, before)
    assert machine.fault(vcpu, 5) is RetPf.FIXED


@pytest.mark.parametrize("prepared", [True, False], ids=["for the leaf", "for a table"])
def test_who_loses_the_compare_exchange_retries(
    machine: Machine, vcpu: Vcpu, prepared: bool
) -> None:
    """Another vCPU is faster between the read of an entry and the compare-exchange on it."""
    other = machine.vcpu()
    if prepared:
        machine.fault(vcpu, 4)
    machine.at("P4", lambda: together(machine.runtime, lambda: machine.fault(other, 5)))
    assert machine.fault(vcpu, 5) is RetPf.RETRY
    assert other.stat.pf_fixed == 1
    assert machine.fault(vcpu, 5) is RetPf.SPURIOUS
    linked = len(machine.tables(machine.root()))
    assert machine.kvm.stat.tdp_mmu_pages.value == linked == 2
    caches = len(vcpu.cache.pages) + len(other.cache.pages)
    assert machine.kvm.tables.live() == 1 + linked + caches, (
        "the table that was not linked is free again"
    )


# Rights.


def test_a_read_only_slot_is_mapped_without_write_rights(machine: Machine) -> None:
    machine.add_slot(0, 4, flags=KVM_MEM_READONLY)
    vcpu = machine.vcpu()
    assert machine.fault(vcpu, 1) is RetPf.FIXED
    sp, index = machine.entry(machine.root(), 1)
    assert not sp.spt[index] & (SPTE_W | HOST_WRITABLE)
    machine.assert_sound()


@pytest.mark.parametrize("mapped", [True, False])
def test_writes_to_a_read_only_slot_are_emulated_every_time(machine: Machine, mapped: bool) -> None:
    machine.add_slot(0, 4, flags=KVM_MEM_READONLY)
    vcpu = machine.vcpu()
    if mapped:
        machine.fault(vcpu, 1)
    assert [machine.fault(vcpu, 1, write=True, present=mapped) for _ in range(3)] == [
        RetPf.EMULATE
    ] * 3


def test_writes_to_memory_that_the_host_maps_read_only_do_not_go_on_for_ever(
    machine: Machine,
) -> None:
    """SPURIOUS means "try again, it will work now" - here it never would, so the vCPU would fault
    for ever."""
    machine.add_slot(0, 4, writable=False)
    vcpu = machine.vcpu()
    answers = [machine.fault(vcpu, 1, write=True), machine.fault(vcpu, 1, write=True, present=True)]
    assert answers == [RetPf.EMULATE, RetPf.EMULATE]


# The lockless path.


def test_a_write_fault_that_is_already_allowed_needs_no_lock(machine: Machine, vcpu: Vcpu) -> None:
    machine.fault(vcpu, 5)
    with elsewhere(machine.runtime, writing(machine.mmu_lock)):
        assert machine.fault(vcpu, 5, write=True, present=True) is RetPf.SPURIOUS


def test_without_accessed_bits_a_fault_on_nothing_may_be_fast_too(
    make_machine: MakeMachine,
) -> None:
    machine = make_machine(ad_bits=False)
    machine.add_slot(0, 4)
    vcpu = machine.vcpu()
    assert machine.fault(vcpu, 1) is RetPf.FIXED
    with elsewhere(machine.runtime, writing(machine.mmu_lock)):
        assert machine.fault(vcpu, 1) is RetPf.SPURIOUS


@pytest.mark.parametrize("level", [1, 2, 3])
def test_the_lockless_walk_ends_at_the_last_entry_there_is(
    machine: Machine, vcpu: Vcpu, level: int
) -> None:
    machine.fault(vcpu, 5)
    root = machine.root()
    gfn = {1: 5, 2: 12, 3: 60}[level]
    with rcu_section(machine.kvm.rcu):
        found = machine.vm.faults.get_last_sptep(root, gfn)
    assert found is not None
    sp, index, spte = found
    assert (sp.level, index) == (level, machine.kvm.geometry.index(gfn, level))
    assert bool(spte) == (level == 1)


def test_the_lockless_walk_needs_rcu(machine: Machine, vcpu: Vcpu) -> None:
    machine.vm.faults.get_last_sptep(machine.root(), 5)
    machine.expect("O3 suspicious-rcu-usage")


# Rules for callers.


def test_mapping_needs_the_read_lock(machine: Machine, vcpu: Vcpu) -> None:
    fault = Fault()
    fault.gfn, fault.pfn = 5, 1
    vcpu.cache.topup()
    assert machine.vm.faults.map(machine.root(), vcpu.cache, fault) is RetPf.FIXED
    machine.expect("O5 assert-held-for-read")


def test_a_fault_needs_srcu(machine: Machine, vcpu: Vcpu) -> None:
    assert vcpu.page_fault(5, False) is RetPf.FIXED
    machine.expect("O3 suspicious-srcu-usage")


def test_the_caches_are_filled_before_the_lock_is_taken(machine: Machine) -> None:
    cache = PageCache(machine.kvm)
    with reading(machine.mmu_lock):
        cache.topup()
    machine.expect("O5 sleep-in-atomic")
    cache.drain()
    with rcu_section(machine.kvm.rcu):
        cache.topup()
    machine.expect("O3 sleep-in-rcu")
    cache.drain()
    assert machine.kvm.tables.live() == 0


def test_a_full_cache_suffices_for_a_walk_from_the_root(make_machine: MakeMachine) -> None:
    machine = make_machine(REAL)
    cache = PageCache(machine.kvm)
    cache.topup()
    assert len(cache.pages) >= REAL.levels - 1
    before = list(cache.pages)
    cache.topup()
    assert cache.pages == before, "a full one is left alone"
    cache.drain()


def test_a_fault_starts_with_no_knowledge_of_another(machine: Machine, vcpu: Vcpu) -> None:
    with elsewhere(machine.runtime, rcu_section(machine.kvm.rcu)):
        machine.fault(vcpu, 5, write=True)
    fresh = Fault()
    assert (fresh.gfn, fresh.write, fresh.present, fresh.as_id, fresh.goal_level) == (
        0,
        False,
        False,
        0,
        1,
    )
    assert (fresh.slot, fresh.pfn, fresh.host_writable, fresh.mmu_seq) == (None, 0, False, 0)


def test_each_address_space_has_its_own_slots(machine: Machine, vcpu: Vcpu) -> None:
    machine.add_slot(32, 4, as_id=1, slot=7)
    vcpu.set_smm(True)
    vcpu.load_root()
    assert machine.fault(vcpu, 5) is RetPf.EMULATE
    assert machine.fault(vcpu, 33) is RetPf.FIXED
    assert machine.leaves(machine.root(as_id=1)) == {33: machine.regions[1, 7].ptes[1]}
    assert machine.leaves(machine.root()) == {}
    machine.assert_sound()


def test_a_host_without_memory_refuses_and_nothing_stays_held(make_machine: MakeMachine) -> None:
    machine = make_machine(frames=2)
    machine.add_slot(0, 4)
    vcpu = machine.vcpu()
    assert machine.fault(vcpu, 0) is RetPf.FIXED
    with pytest.raises(KvmError, match="ENOMEM"):
        machine.fault(vcpu, 1)
    assert machine.mmu_lock.held_mode() == 0
    assert not machine.kvm.srcu.read_held()
    assert not machine.vm.host.mmap_lock.held()


# Numbers.


def test_every_fault_is_counted_under_exactly_one_answer(machine: Machine, vcpu: Vcpu) -> None:
    machine.fault(vcpu, 5)
    machine.fault(vcpu, 5)
    machine.fault(vcpu, 40)
    machine.at("P2", lambda: machine.kvm.invalidation.seq.fetch_add(1))
    machine.fault(vcpu, 6)
    stat = vcpu.stat
    assert (stat.pf_fixed, stat.pf_spurious, stat.pf_emulate, stat.pf_retry) == (1, 1, 1, 1)
    assert stat.pf_taken == 4
