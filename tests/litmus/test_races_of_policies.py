"""Every policy for an exported root: when a memslot delete has returned, neither a vCPU nor a
device reaches the old memory, and the device goes on with the rest. The negative control is found
out."""

from __future__ import annotations

import pytest

from mmu.export.device import Dma
from mmu.export.policies import POLICIES
from mmu.kernels import SERIES
from mmu.machine.vcpu import Exit
from mmu.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES
from mmu.task import Task
from mmu.variant import Variant
from tests.conftest import finish
from tests.litmus.bench import (
    Steps,
    assert_clean,
    dma,
    ended,
    expect,
    finish_all,
    litmus,
    meanwhile,
    until_stuck,
)
from tests.model import Machine, w

WRONG = "invalidate-in-place"
SOUND = [policy for name, policy in POLICIES.items() if name != WRONG]

each_policy = pytest.mark.parametrize("policy", SOUND, ids=[policy.name for policy in SOUND])


each_kernel = pytest.mark.parametrize("kernel", list(SERIES))


def test_the_negative_control_is_the_only_one_that_is_left_out() -> None:
    assert [name for name, policy in POLICIES.items() if policy.expects] == [WRONG]


def two_slots(machine: Machine) -> tuple[object, object, object]:
    """Slots at gfns 0 and 16, warm in a vCPU and in a device."""
    machine.add_slot(0, 8)
    machine.add_slot(16, 8, slot=1)
    device, hwpt = machine.attach(machine.export())
    vcpu = machine.vcpu()
    machine.run(vcpu, w(1), w(17))
    assert dma(device, hwpt, 1, write=True)
    assert dma(device, hwpt, 17, write=True)
    return vcpu, device, hwpt


@each_kernel
@each_policy
def test_nobody_reaches_a_deleted_slot_and_everybody_the_rest(policy: Variant, kernel: str) -> None:
    with litmus(*SERIES[kernel], policy) as machine:
        vcpu, device, hwpt = two_slots(machine)
        meanwhile(machine, lambda: machine.delete_slot(1))
        for write in (False, True):
            assert device.transact(17, write) is None
            assert not hwpt.io_fault(17, write)
        assert machine.run(vcpu, 17) is Exit.MMIO
        for write in (True, False):
            assert dma(device, hwpt, 1, write)
        assert machine.run(vcpu, w(1), 1) is Exit.INTR
        assert device.root.value is machine.vm.exported_tdps.all()[0].root.value
        assert not device.root.value.invalid.value
        assert_clean(machine)


@each_policy
def test_an_access_in_flight_is_over_before_the_delete_returns(policy: Variant) -> None:
    with litmus(policy) as machine:
        _, device, hwpt = two_slots(machine)
        told: list[object] = []
        machine.on(
            importer_called=lambda *_: told.append(True),
            point=lambda name: told.append(name) if name == "P8" else None,
        )
        deleting: list[Task] = []

        def delete() -> None:
            deleting.append(
                until_stuck(machine, lambda: machine.delete_slot(1), "-", lambda: bool(told))
            )
            assert not ended(machine, deleting[0]), "the delete has to wait for the hardware"

        machine.at("P16", delete)
        assert device.transact(17, write=True) is Dma.DONE
        finish_all(machine, deleting)
        assert device.transact(17, write=True) is None
        assert not hwpt.io_fault(17, write=True)
        assert dma(device, hwpt, 1)
        assert_clean(machine)


@each_kernel
@each_policy
def test_a_guest_that_is_running_is_out_before_the_delete_returns(
    policy: Variant, kernel: str
) -> None:
    with litmus(*SERIES[kernel], policy) as machine:
        vcpu, _, _ = two_slots(machine)
        deleting: list[Task] = []

        def delete() -> None:
            deleting.append(
                until_stuck(machine, lambda: machine.delete_slot(1), "leave guest mode")
            )
            assert not ended(machine, deleting[0])

        vcpu.run(Steps(17, delete, 17), 2)
        finish_all(machine, deleting)
        assert machine.run(vcpu, 17) is Exit.MMIO
        assert_clean(machine)


@each_policy
def test_an_io_fault_that_comes_during_the_delete_is_answered_truly(policy: Variant) -> None:
    with litmus(policy) as machine:
        _, device, hwpt = two_slots(machine)
        answers: list[tuple[int, bool]] = []
        workers: list[Task] = []

        def ask(gfn: int) -> None:
            answers.append((gfn, hwpt.io_fault(gfn, write=True)))

        machine.at(
            "P14",
            lambda: workers.extend(
                until_stuck(machine, lambda gfn=gfn: ask(gfn), "slots_lock") for gfn in (18, 2)
            ),
        )
        machine.delete_slot(1)
        finish(machine.runtime, *workers)
        assert sorted(answers) == [(2, True), (18, False)]
        assert device.transact(2, write=True) is Dma.DONE
        assert_clean(machine)


@each_policy
def test_a_moved_slot_is_found_at_its_new_place_only(policy: Variant) -> None:
    with litmus(policy) as machine:
        vcpu, device, hwpt = two_slots(machine)
        meanwhile(machine, lambda: machine.move_slot(32, slot=1))
        assert device.transact(17, write=True) is None
        assert dma(device, hwpt, 33, write=True)
        assert machine.run(vcpu, 17) is Exit.MMIO
        assert machine.run(vcpu, w(33)) is Exit.INTR
        assert_clean(machine)


@each_policy
def test_the_toggle_and_the_log_work_under_it_too(policy: Variant) -> None:
    with litmus(policy) as machine:
        vcpu, device, hwpt = two_slots(machine)
        machine.vm.set_nx_huge_pages(True)
        machine.run(vcpu, w(1))
        assert dma(device, hwpt, 17, write=True)
        machine.set_flags(KVM_MEM_LOG_DIRTY_PAGES, slot=1)
        machine.vm.get_dirty_log(1)
        assert dma(device, hwpt, 17, write=True)
        assert 1 in machine.vm.get_dirty_log(1)
        assert_clean(machine)


@each_policy
def test_the_fd_can_be_closed_and_the_address_space_exported_again(policy: Variant) -> None:
    with litmus(policy) as machine:
        _, device, hwpt = two_slots(machine)
        machine.delete_slot(1)
        hwpt.destroy()
        meanwhile(machine, machine._fds[0].put)
        assert device.transact(1, write=False) is None
        exported, new_hwpt = machine.attach(machine.export(), "device1")
        assert dma(exported, new_hwpt, 1)
        assert_clean(machine)


def test_invalidating_in_place_is_found_out_at_once_and_when_the_device_goes_on() -> None:
    with litmus(POLICIES[WRONG]) as machine:
        _, device, _ = two_slots(machine)
        meanwhile(machine, lambda: machine.delete_slot(1))
        expect(machine, "O12 exported-root-invalid")
        assert device.transact(17, write=True) is Dma.WRONG
        expect(machine, "O1 stale-tlb")
        machine.abandon()


def test_republishing_to_an_importer_that_fails_cuts_it_off_and_the_delete_is_still_safe() -> None:
    with litmus(POLICIES["republish"]) as machine:
        _, device, hwpt = two_slots(machine)
        machine.kvm.fail_function = lambda step: step == "switch_root"
        meanwhile(machine, lambda: machine.delete_slot(1))
        machine.kvm.fail_function = None
        assert hwpt.revoked.value
        assert device.transact(1, write=False) is None
        assert device.transact(17, write=False) is None
        assert dma(device, hwpt, 1), "it comes back with its next fault"
        assert not dma(device, hwpt, 17)
        assert_clean(machine)
