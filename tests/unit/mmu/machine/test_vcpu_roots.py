"""A vCPU's roots: the current one and up to three previous ones, each with a reference, none of
them obsolete (B25, B26)."""

from __future__ import annotations

import pytest

from mmu.machine.vcpu import FETCH, NUM_PREV_ROOTS, Exit, Vcpu
from mmu.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES
from mmu.memory.requests import KVM_REQ_TLB_FLUSH_CURRENT
from mmu.paging.spte import SPTE_D, SPTE_W, SPTE_X
from mmu.paging.table import RootPage, RootRole
from mmu.tdp.fault import RetPf
from tests.conftest import finish, writing
from tests.model import Machine, Script, w, x
from tests.patience import PATIENCE
from tests.unit.conftest import MakeMachine

NORMAL, NESTED = RootRole(0), RootRole(0, guest_mode=True)
ROLES = [
    NORMAL,
    NESTED,
    RootRole(0, iommu=True),
    RootRole(0, guest_mode=True, iommu=True),
    RootRole(1),
]
"""More roles than a vCPU keeps roots."""


@pytest.fixture
def vcpu(machine: Machine) -> Vcpu:
    """A vCPU of a VM with a slot at gfns 0..15, that has read gfn 1."""
    machine.add_slot(0, 16)
    vcpu = machine.vm.create_vcpu()
    machine.run(vcpu, 1)
    return vcpu


def visit(vcpu: Vcpu, *roles: RootRole) -> list[RootPage]:
    """Switch to each role in turn and load its root; the roots."""
    roots = []
    for role in roles:
        vcpu.switch_role(role)
        vcpu.service_requests()
        assert vcpu.root is not None
        roots.append(vcpu.root)
    return roots


# Switching.


def test_a_root_that_was_left_is_kept_and_found_again(machine: Machine, vcpu: Vcpu) -> None:
    normal = vcpu.root
    (nested,) = visit(vcpu, NESTED)
    assert nested is not normal
    assert vcpu.prev_roots == [normal]
    loads = vcpu.stat.root_loads
    assert visit(vcpu, NORMAL) == [normal]
    assert (vcpu.stat.root_loads, vcpu.stat.prev_root_hits) == (loads, 1)
    assert vcpu.prev_roots == [nested]
    machine.assert_sound()


def test_every_root_that_is_kept_is_held(machine: Machine, vcpu: Vcpu) -> None:
    roots = [vcpu.root, *visit(vcpu, NESTED)]
    assert [root.refcount.read() for root in roots if root is not None] == [2, 2]
    assert vcpu.loaded_roots() == roots
    machine.assert_sound()


def test_the_oldest_is_dropped_when_there_are_too_many(machine: Machine, vcpu: Vcpu) -> None:
    assert len(ROLES) == NUM_PREV_ROOTS + 2
    first = vcpu.root
    assert first is not None
    roots = [first, *visit(vcpu, *ROLES[1:-1])]
    assert vcpu.prev_roots == roots[-2::-1]
    assert first.refcount.read() == 2
    (last,) = visit(vcpu, ROLES[-1])
    assert vcpu.prev_roots == roots[:0:-1]
    assert first.refcount.read() == 1, "the TDP MMU's own"
    assert vcpu.root is last
    machine.assert_sound()


def test_staying_is_no_switch(machine: Machine, vcpu: Vcpu) -> None:
    root, flushes = vcpu.root, vcpu.stat.tlb_flush
    vcpu.switch_role(RootRole(0))
    assert (vcpu.root, vcpu.prev_roots, vcpu.stat.tlb_flush) == (root, [], flushes)


def test_a_switch_empties_the_tlb(machine: Machine, vcpu: Vcpu) -> None:
    """The same gfn goes through other tables now."""
    visit(vcpu, NESTED)
    machine.run(vcpu, 2)
    vcpu.switch_role(NORMAL)
    assert vcpu.root is not None
    assert (vcpu.tlb.entries, vcpu.tlb.tables) == ({}, {})
    machine.assert_sound()


def test_a_switch_before_the_first_root_keeps_nothing(machine: Machine) -> None:
    vcpu = machine.vm.create_vcpu()
    vcpu.switch_role(NESTED)
    assert (vcpu.root, vcpu.prev_roots) == (None, [])


def test_a_nested_guest_uses_the_same_memory_through_another_root(
    machine: Machine, vcpu: Vcpu
) -> None:
    machine.run(vcpu, w(1))
    vcpu.set_guest_mode(nested=True)
    machine.run(vcpu, 1, w(2))
    nested = vcpu.root
    assert nested is not None
    assert nested.role == NESTED
    assert machine.leaves(nested) == {gfn: machine.regions[0, 0].ptes[gfn] for gfn in (1, 2)}
    vcpu.set_guest_mode(nested=False)
    machine.run(vcpu, 2)
    machine.assert_sound()


def test_an_access_that_was_interrupted_by_a_switch_is_not_repeated_elsewhere(
    machine: Machine, vcpu: Vcpu
) -> None:
    machine.at("P1", vcpu.interrupt)
    assert machine.run(vcpu, 9) is Exit.INTR
    vcpu.immediate_exit.value = False
    accesses = vcpu.stat.accesses
    vcpu.set_guest_mode(nested=True)
    machine.run(vcpu, 2)
    assert vcpu.stat.accesses == accesses + 1
    assert list(vcpu.tlb.entries) == [2]


# Obsolete roots.


def test_previous_roots_that_became_invalid_are_dropped_on_request(
    machine: Machine, vcpu: Vcpu
) -> None:
    """B26: not only the current one."""
    normal = vcpu.root
    (nested,) = visit(vcpu, NESTED)
    machine.add_slot(32, 4, slot=1)
    machine.delete_slot(1)
    assert normal is not None
    assert (normal.invalid.value, nested.invalid.value) == (True, True)
    freed = machine.record("root_freed")
    vcpu.service_requests()
    assert {args[0] for args in freed.args("root_freed")} == {normal, nested}
    assert vcpu.prev_roots == []
    assert vcpu.root is not nested
    machine.assert_sound()


def test_a_previous_root_that_is_still_valid_is_kept(machine: Machine, vcpu: Vcpu) -> None:
    machine.export()
    normal = vcpu.root
    visit(vcpu, NESTED)
    machine.add_slot(32, 4, slot=1)
    machine.delete_slot(1)
    vcpu.service_requests()
    assert vcpu.prev_roots == [normal]
    machine.assert_sound()


def test_an_invalid_root_is_not_found_again(machine: Machine, vcpu: Vcpu) -> None:
    """`invalid` is part of the role, so a switch cannot come back to it, request or not."""
    normal = vcpu.root
    assert normal is not None
    visit(vcpu, NESTED)
    with writing(machine.mmu_lock):
        machine.vm.roots.invalidate(normal)
    (found,) = visit(vcpu, NORMAL)
    assert found is not normal
    assert normal in vcpu.prev_roots
    with machine.kvm.slots_lock:
        machine.vm.zapper.zap_invalidated_roots()
    machine.vm.requests.make_all_cpus_request(1 << 31)
    vcpu.service_requests()
    machine.assert_sound()


def test_unloading_drops_the_previous_roots_too(machine: Machine, vcpu: Vcpu) -> None:
    """B25."""
    normal = vcpu.root
    assert normal is not None
    (nested,) = visit(vcpu, NESTED)
    vcpu.unload()
    assert (vcpu.root, vcpu.prev_roots, vcpu.loaded_roots()) == (None, [], [])
    assert (normal.refcount.read(), nested.refcount.read()) == (1, 1)
    machine.assert_sound()


def test_smm_keeps_no_previous_roots(machine: Machine, vcpu: Vcpu) -> None:
    visit(vcpu, NESTED)
    vcpu.set_smm(True)
    assert vcpu.loaded_roots() == []


def test_a_destroyed_vcpu_holds_no_previous_root(machine: Machine, vcpu: Vcpu) -> None:
    normal = vcpu.root
    assert normal is not None
    visit(vcpu, NESTED)
    vcpu.destroy()
    assert normal.refcount.read() == 1


# In the guest.


def test_a_flush_of_the_current_context_is_serviced(machine: Machine, vcpu: Vcpu) -> None:
    flushes = vcpu.stat.tlb_flush
    vcpu.state.requests.fetch_or(KVM_REQ_TLB_FLUSH_CURRENT)
    vcpu.service_requests()
    assert vcpu.stat.tlb_flush == flushes + 1
    assert vcpu.tlb.entries == {}


def test_a_fetch_needs_the_right_to_execute(machine: Machine, vcpu: Vcpu) -> None:
    sp, index = machine.entry(machine.root(), 1)
    sp.spt.fetch_and(index, ~SPTE_X)
    vcpu.flush_local()
    faults = vcpu.stat.pf_taken
    machine.run(vcpu, 1)
    assert vcpu.stat.pf_taken == faults
    machine.run(vcpu, x(1))
    assert vcpu.stat.pf_taken == faults + 1
    assert sp.spt[index] & SPTE_X


def test_the_scripts_of_these_tests_say_what_they_mean() -> None:
    script = Script(5, w(5), x(5))
    assert [script.next_access() for _ in range(3)] == [10, 11, 10 | FETCH]


def test_a_write_through_a_clean_entry_walks_again_and_sets_the_d_bit(
    machine: Machine, vcpu: Vcpu
) -> None:
    sp, index = machine.entry(machine.root(), 1)
    sp.spt.fetch_and(index, ~SPTE_D)
    vcpu.flush_local()
    machine.run(vcpu, 1)
    assert not vcpu.tlb.entries[1] & SPTE_D
    walks, faults = vcpu.stat.walks, vcpu.stat.pf_taken
    tick = machine.kvm.dirty_clock.value
    machine.run(vcpu, w(1), w(1))
    assert (vcpu.stat.walks, vcpu.stat.pf_taken) == (walks + 1, faults)
    assert sp.spt[index] & SPTE_D
    assert vcpu.dirtied == {machine.regions[0, 0].ptes[1]: tick + 1}
    machine.assert_sound()


def test_without_d_bits_a_write_needs_w_and_sets_nothing(make_machine: MakeMachine) -> None:
    machine = make_machine(ad_bits=False)
    machine.add_slot(0, 16)
    vcpu = machine.vm.create_vcpu()
    machine.run(vcpu, w(1), w(1))
    assert machine.spte(1) & (SPTE_W | SPTE_D) == SPTE_W
    assert vcpu.dirtied == {}
    machine.assert_sound()


@pytest.mark.parametrize(
    ("pml", "nested", "logged"), [(True, False, 1), (False, False, 0), (True, True, 0)]
)
def test_pml_is_for_guests_whose_addresses_it_gets_right(
    make_machine: MakeMachine, pml: bool, nested: bool, logged: int
) -> None:
    machine = make_machine(pml=pml)
    machine.add_slot(0, 16, flags=KVM_MEM_LOG_DIRTY_PAGES)
    vcpu = machine.vm.create_vcpu()
    vcpu.set_guest_mode(nested)
    machine.run(vcpu, 1)
    assert vcpu.root is not None
    sp, index = machine.entry(vcpu.root, 1)
    sp.spt.fetch_and(index, ~SPTE_D)
    vcpu.flush_local()
    machine.run(vcpu, w(1))
    assert vcpu.stat.pml_logged == logged


def test_the_pml_buffer_is_emptied_inside_srcu_and_after_every_exit(
    machine: Machine, vcpu: Vcpu
) -> None:
    machine.log_dirty_pages()
    machine.run(vcpu, 1)
    held: list[bool] = []
    plain = machine.vm.faults.mark_page_dirty

    def mark(as_id: int, gfn: int) -> None:
        held.append(machine.kvm.srcu.read_held())
        plain(as_id, gfn)

    machine.vm.faults.mark_page_dirty = mark  # type: ignore[method-assign]
    machine.run(vcpu, w(1))
    assert held == [True]
    machine.run(vcpu, w(1))
    assert held == [True], "once only"


def test_an_interrupt_ends_a_run_from_inside_the_guest(machine: Machine, vcpu: Vcpu) -> None:
    class Endless:
        def __init__(self) -> None:
            self.count = 0

        def next_access(self) -> int:
            self.count += 1
            if self.count == 3:
                vcpu.interrupt()
            return 1 << 1

    exits: list[Exit] = []
    task = machine.runtime.spawn("vcpu", lambda: exits.append(vcpu.run(Endless(), 1 << 40)))
    assert machine.runtime.join(task, PATIENCE)
    finish(machine.runtime, task)
    assert exits == [Exit.INTR]


# What a fault starts with.


def test_a_vcpus_next_fault_forgets_the_size_and_policy_of_the_last(
    make_machine: MakeMachine,
) -> None:
    """A vCPU has one fault object; R8 is what happens otherwise."""
    machine = make_machine(huge_2m=4, nx_huge_pages=True)
    machine.add_slot(0, 16, max_level=2)
    machine.add_slot(16, 16, slot=1)
    vcpu = machine.vcpu()
    assert machine.fault(vcpu, 4, write=True) is RetPf.FIXED
    assert machine.fault(vcpu, 20) is RetPf.FIXED
    assert machine.fault(vcpu, 8, fetch=True) is RetPf.FIXED
    assert machine.fault(vcpu, 12, write=True) is RetPf.FIXED
    assert machine.huge_leaves() == [(4, 2), (12, 2)]
    assert sorted(machine.leaves(machine.root())) == [4, 8, 12, 20]
    machine.assert_sound()
