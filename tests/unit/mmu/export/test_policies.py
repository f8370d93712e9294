"""Policies: what a memslot change does to an exported root under each of them (reference 1.9,
1.10)."""

from __future__ import annotations

import pytest

from mmu.export.device import Dma
from mmu.export.policies import INVALIDATE_IN_PLACE, KEEP_VALID, POLICIES
from mmu.invariants import violations
from mmu.numbers.oracles import RULES
from mmu.variant import Variant
from tests.model import Machine
from tests.unit.conftest import MakeMachine


def after_a_delete(machine: Machine) -> Machine:
    """A device has used gfn 1 of a slot that is then deleted, its memory released; another slot
    stays."""
    machine.add_slot(0, 8, slot=1)
    machine.add_slot(16, 8, slot=2)
    vcpu = machine.vcpu()
    device, hwpt = machine.attach(machine.export())
    assert hwpt.io_fault(1, write=True)
    assert device.transact(1, write=True) is Dma.DONE
    machine.run(vcpu, 1, 17)
    machine.delete_slot(1)
    return machine


@pytest.mark.parametrize("policy", POLICIES.values(), ids=lambda policy: policy.name)
def test_every_policy_says_what_it_is(policy: Variant) -> None:
    assert POLICIES[policy.name] is policy
    assert policy.title
    assert policy.origin
    assert set(policy.expects) <= set(RULES)


def test_by_default_the_exported_root_is_kept_valid(make_machine: MakeMachine) -> None:
    assert KEEP_VALID.parts == (), "the seed is what the model does by itself"


@pytest.mark.parametrize("variants", [(), (KEEP_VALID,)], ids=["default", "keep-valid"])
def test_keep_valid_is_safe(make_machine: MakeMachine, variants: tuple[Variant, ...]) -> None:
    machine = after_a_delete(make_machine(variants=variants))
    (vcpu,) = machine.vm.vcpus()
    (hwpt,) = machine._hwpts
    device, root = hwpt.device, machine.root()
    assert device.root.value is root is vcpu.root
    assert not root.invalid.value
    assert device.transact(1, write=False) is None
    assert not hwpt.io_fault(1, write=False), (
        "an importer is told that the access can never be served"
    )
    machine.run(vcpu, 17)
    assert hwpt.io_fault(17, write=True)
    assert device.transact(17, write=True) is Dma.DONE
    machine.assert_sound()


def test_invalidate_in_place_leaves_the_device_on_a_dead_root(make_machine: MakeMachine) -> None:
    machine = after_a_delete(make_machine(variants=[INVALIDATE_IN_PLACE]))
    (hwpt,) = machine._hwpts
    root = hwpt.device.root.value
    assert root is not None
    assert root.invalid.value
    assert root.exported.value
    assert {violation.invariant for violation in violations(machine.vm)} == {"I5", "I9"}
    machine.kvm.rcu.barrier()
    assert hwpt.device.transact(1, write=True) is Dma.WRONG, (
        "nobody flushed the IOTLB: the DMA hits released memory"
    )
    assert [found[:2] + found[3:] for found in machine.wrong] == [("device0", 1, True, 0)], (
        "and the tables say by now: nothing"
    )
    machine.expect()
    machine.abandon()


def test_invalidate_in_place_lets_a_walk_end_in_freed_tables(make_machine: MakeMachine) -> None:
    machine = after_a_delete(make_machine(variants=[INVALIDATE_IN_PLACE]))
    (hwpt,) = machine._hwpts
    machine.kvm.rcu.barrier()
    assert hwpt.device.transact(2, write=False) is None
    machine.expect("O2 use-after-free")
    machine.abandon()
