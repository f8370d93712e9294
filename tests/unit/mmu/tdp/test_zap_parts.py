"""Zapping parts of roots: the leaves of a slot, a range of attributes, one table."""

from __future__ import annotations

from typing import Any

from mmu.paging.table import RootPage
from mmu.tdp.fault import RetPf
from tests.conftest import finish, reading, writing
from tests.model import Machine
from tests.unit.mmu.tdp.test_zap import ALL, contended, zap_leafs


def test_zapping_a_slots_leaves_spares_the_rest_of_every_root(machine: Machine) -> None:
    machine.add_slot(0, 8, slot=1)
    machine.add_slot(16, 8, slot=2)
    machine.add_slot(16, 8, slot=2, as_id=1)
    vcpu, smm = machine.vcpu(), machine.vm.create_vcpu()
    machine.run(vcpu, 1, 17, 23)
    vcpu.set_guest_mode(nested=True)
    machine.run(vcpu, 2, 18)
    smm.set_smm(True)
    machine.run(smm, 17)
    flushes = machine.record("flush_begin")
    with machine.kvm.slots_lock:
        machine.vm.zapper.zap_memslot_leafs(machine.slot(2))
    left = {str(root.role): sorted(machine.leaves(root)) for root in machine.vm.roots.snapshot()}
    assert left == {"as0": [1], "as0 nested": [2], "as1": [17]}
    assert flushes.args("flush_begin") == [("memslot-zap", 16, 8)]
    with machine.kvm.slots_lock:
        machine.vm.zapper.zap_memslot_leafs(machine.slot(2))
    assert len(flushes.events) == 1, "nothing was left to flush"
    for each in (vcpu, smm):
        each.service_requests()
    machine.assert_sound()


def test_zapping_a_slots_leaves_needs_slots_lock(machine: Machine) -> None:
    machine.add_slot(0, 8)
    machine.vm.zapper.zap_memslot_leafs(machine.slot())
    machine.expect("O5 assert-held")


def test_a_change_of_attributes_zaps_its_range_in_every_address_space(
    machine: Machine, root: RootPage
) -> None:
    smm = machine.root(as_id=1)
    machine.plant(smm, 2, 40)
    flushes = machine.record("flush_begin")
    machine.vm.change_attributes(2, 22)
    assert sorted(machine.leaves(root)) == [1, 63]
    assert sorted(machine.leaves(smm)) == [40]
    ((reason, first, pages),) = flushes.args("flush_begin")
    assert reason == "gfn-range"
    assert (first <= 2, first + pages >= 22) == (True, True)


def test_while_attributes_change_every_fault_is_held_off(machine: Machine) -> None:
    """B50: the zap yields, and its range says nothing about host addresses."""
    machine.add_slot(0, 32)
    vcpu, results = machine.vcpu(), list[RetPf]()
    machine.run(vcpu, 1, 21)
    contended(machine)
    machine.at(
        "P7",
        lambda: fault_in_between.append(
            machine.runtime.spawn("vcpu", lambda: results.append(machine.fault(vcpu, 30)))
        ),
    )
    fault_in_between: list[Any] = []
    machine.vm.change_attributes(0, 64)
    finish(machine.runtime, *fault_in_between)
    assert results == [RetPf.RETRY] or machine.leaves(machine.root()) == {
        30: machine.regions[0, 0].ptes[30]
    }
    assert machine.kvm.invalidation.in_progress.value == 0
    machine.vm.tlb.flush("test")
    machine.run(vcpu, 30)
    machine.assert_sound()


def test_a_flush_that_one_root_owes_is_made_for_all(machine: Machine) -> None:
    """B02, B11: the debt is handed on, whatever the last root says."""
    machine.add_slot(0, 16)
    vcpu = machine.vcpu()
    vcpu.set_guest_mode(nested=True)
    vcpu.service_requests()
    vcpu.set_guest_mode(nested=False)
    machine.run(vcpu, 1)
    roots = [root.role.guest_mode for root in machine.vm.roots.snapshot()]
    assert sorted(roots) == [False, True]
    with writing(machine.mmu_lock):
        assert machine.vm.zapper.zap_roots_leafs(0, 0, 16)
        assert not machine.vm.zapper.zap_roots_leafs(0, 0, 16)
    machine.vm.tlb.flush("test")


# One table.


def test_one_table_is_removed_through_its_parent(machine: Machine, root: RootPage) -> None:
    table, _ = machine.entry(root, 21)
    with machine.zapping():
        assert machine.vm.zapper.zap_sp(table)
        assert not machine.vm.zapper.zap_sp(table), "its parent's entry is not present any more"
        assert not machine.vm.zapper.zap_sp(root), "a root has no parent"
    assert sorted(machine.leaves(root)) == [1, 2, 63]


def test_huge_leaves_are_leaves(machine: Machine, root: RootPage) -> None:
    sp, index = machine.entry(root, 24, level=2)
    with reading(machine.mmu_lock):
        machine.vm.writer.set_spte_atomic(
            sp, index, 24, 0, machine.kvm.layout.leaf(24, 2, writable=True, host_writable=True)
        )
    assert zap_leafs(machine, root, 26, 27)
    assert sorted(machine.leaves(root)) == [1, 2, 21, 63]
    assert machine.kvm.stat.pages_2m.value == 0


def test_each_leaf_zap_is_told_when_it_ends(machine: Machine, root: RootPage) -> None:
    events = machine.record("zap_leafs_done")
    zap_leafs(machine, root, 2, 30)
    assert events.args("zap_leafs_done") == [(root, 2, 30, False)]
    contended(machine)
    zap_leafs(machine, root, can_yield=True)
    assert events.args("zap_leafs_done")[1] == (root, 0, ALL, True)
