"""Gauges: what a VM holds, now and at most."""

from __future__ import annotations

from mmu.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES
from stress.observe.gauges import GAUGES, Gauges
from tests.model import Machine, w, x
from tests.unit.conftest import MakeMachine


def watched(machine: Machine) -> Gauges:
    gauges = Gauges(machine.vm)
    machine.probe.attach(gauges)
    return gauges


def test_every_gauge_begins_at_nothing_and_has_a_meaning(machine: Machine) -> None:
    gauges = watched(machine)
    gauges.sample()
    assert gauges.last == gauges.peak == dict.fromkeys(GAUGES, 0)
    assert all(GAUGES.values())


def test_tables_roots_and_leaves_are_what_is_there(machine: Machine) -> None:
    gauges = watched(machine)
    machine.add_slot(0, 16)
    machine.run(machine.vcpu(), w(0), w(1), w(4))
    gauges.sample()
    assert gauges.last["roots"] == 1
    assert gauges.last["mapped_leaves"] == 3
    assert gauges.last["table_pages"] == len(machine.tables(machine.root())) == 3


def test_the_peak_stays_when_the_value_goes_down(machine: Machine) -> None:
    gauges = watched(machine)
    region = machine.add_slot(0, 16)
    vcpu = machine.vcpu()
    machine.run(vcpu, w(0), w(1), w(4))
    gauges.sample()
    machine.discard(region, 1, 8)
    gauges.sample()
    assert (gauges.last["mapped_leaves"], gauges.peak["mapped_leaves"]) == (1, 3)
    machine.run(vcpu, w(1))
    gauges.sample()
    assert (gauges.last["mapped_leaves"], gauges.peak["mapped_leaves"]) == (2, 3)


def test_what_nobody_sampled_is_not_known(machine: Machine) -> None:
    gauges = watched(machine)
    machine.add_slot(0, 16)
    machine.run(machine.vcpu(), w(0))
    assert gauges.peak["mapped_leaves"] == 0
    gauges.sample()
    assert gauges.peak["mapped_leaves"] == 1


def test_roots_come_and_go(machine: Machine) -> None:
    gauges = watched(machine)
    machine.add_slot(0, 16)
    machine.add_slot(0, 4, as_id=1)
    vcpu = machine.vcpu()
    machine.run(vcpu, w(0))
    vcpu.set_smm(True)
    machine.run(vcpu, w(0))
    gauges.sample()
    assert gauges.last["roots"] == 2
    machine.delete_slot(0, 1)
    vcpu.set_smm(False)
    machine.run(vcpu, w(1))
    gauges.sample()
    assert (gauges.last["roots"], gauges.peak["roots"]) == (1, 2)


def test_the_backlog_is_what_waits_for_a_grace_period(machine: Machine) -> None:
    gauges = watched(machine)
    machine.kvm.rcu.read_lock()
    for _ in range(3):
        machine.kvm.rcu.call(lambda: None)
    gauges.sample()
    machine.kvm.rcu.read_unlock()
    machine.kvm.rcu.barrier()
    assert gauges.last["rcu_backlog"] == 3
    gauges.sample()
    assert (gauges.last["rcu_backlog"], gauges.peak["rcu_backlog"]) == (0, 3)


def test_tables_of_the_mitigation(make_machine: MakeMachine) -> None:
    machine = make_machine(huge_2m=8, nx_huge_pages=True, nx_recovery_ratio=1)
    gauges = watched(machine)
    machine.add_slot(0, 16, max_level=2)
    machine.run(machine.vcpu(), x(5), x(9))
    gauges.sample()
    machine.vm.recover_nx_huge_pages()
    gauges.sample()
    assert (gauges.last["nx_lpage_splits"], gauges.peak["nx_lpage_splits"]) == (0, 2)


def test_empty_tables_are_counted_at_rest_only(machine: Machine) -> None:
    """R16: a leaf-only zap leaves the tables."""
    gauges = watched(machine)
    machine.add_slot(0, 4)
    machine.add_slot(16, 8, slot=1)
    machine.export()
    machine.run(machine.vcpu(), w(0), w(16), w(20))
    machine.delete_slot(1)
    gauges.sample()
    assert gauges.peak["empty_tables"] == 0
    gauges.at_rest()
    assert gauges.last["empty_tables"] == 3
    assert gauges.last["table_pages"] >= 4


def test_a_table_with_an_mmio_spte_is_not_empty(machine: Machine) -> None:
    gauges = watched(machine)
    machine.add_slot(0, 4, flags=KVM_MEM_LOG_DIRTY_PAGES)
    machine.run(machine.vcpu(), 40)
    gauges.at_rest()
    assert gauges.last["empty_tables"] == 0
