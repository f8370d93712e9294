"""Two threads, one interleaving each: faults against memslot updates, notifiers, other faults and
the NX toggle.

Each race is run as the code is, which must be silent, and with one mend or check taken out, which
must be found.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mmu.export.device import Dma
from mmu.machine.vcpu import Exit
from mmu.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES
from mmu.paging.table import RootPage
from mmu.posted import POSTED
from mmu.runtime import Queue
from mmu.task import Task
from mmu.tdp.fault import Fault, FaultHandler, RetPf
from stress.mutants import MUTANTS
from tests.litmus.bench import (
    Steps,
    add_huge_slot,
    assert_clean,
    assert_found,
    both_ways,
    broken,
    defect,
    ended,
    expect,
    fetch,
    finish_all,
    litmus,
    meanwhile,
    move_pages,
    part,
    reclaim,
    set_flags,
    until_stuck,
)
from tests.model import Machine, w

# vCPU fault against memslot delete (2.9).


def fault_across_a_delete(machine: Machine, point: str) -> tuple[RetPf, bool]:
    """A vCPU has gfn 1's slot in its hands when the slot is deleted and its memory released: the
    fault's result, and whether the delete had come to its end before the fault did."""
    machine.add_slot(0, 8)
    machine.add_slot(8, 8, slot=1)
    machine.export()
    vcpu = machine.vcpu()
    deleting: list[Task] = []
    early: list[bool] = []

    def delete() -> None:
        deleting.append(until_stuck(machine, machine.delete_slot, "kvm->srcu grace period"))
        early.append(ended(machine, deleting[0]))

    machine.at(point, delete)
    result = machine.fault(vcpu, 1, write=True)
    finish_all(machine, deleting)
    machine.run(vcpu, w(9))
    return result, early[0]


@pytest.mark.parametrize("point", ["P1", "P2", "P4"])
def test_a_delete_waits_for_the_fault_and_unmaps_what_it_mapped(point: str) -> None:
    with litmus() as machine:
        assert fault_across_a_delete(machine, point) == (RetPf.FIXED, False)
        assert set(machine.leaves(machine.root())) == {9}
        assert machine.run(machine.vm.vcpus()[0], 1) is Exit.MMIO
        assert_clean(machine)


def test_without_the_srcu_wait_the_fault_maps_a_deleted_slot() -> None:
    with litmus(MUTANTS["srcu-wait-skipped"]) as machine:
        machine.add_slot(0, 8)
        machine.export()
        vcpu = machine.vcpu()
        machine.at("P2", lambda: meanwhile(machine, machine.delete_slot))
        assert machine.fault(vcpu, 1, write=True) is RetPf.FIXED
        assert broken(machine) == {"I7", "I8"}
        machine.run(vcpu, 1)
        assert "O6 stale-map" in machine.news()
        machine.abandon()


def test_a_fault_between_the_two_swaps_of_a_delete_is_retried_and_then_finds_no_slot() -> None:
    with litmus() as machine:
        machine.add_slot(0, 8)
        machine.export()
        vcpu = machine.vcpu()
        answers: list[RetPf] = []
        machine.at(
            "P14", lambda: meanwhile(machine, lambda: answers.append(machine.fault(vcpu, 1)))
        )
        machine.delete_slot()
        assert answers == [RetPf.RETRY], "the slot is INVALID"
        assert machine.fault(vcpu, 1) is RetPf.EMULATE
        assert_clean(machine)


def test_a_fault_in_a_root_that_was_invalidated_meanwhile_is_stale() -> None:
    with litmus() as machine:
        machine.add_slot(0, 8)
        vcpu = machine.vcpu()
        stale = machine.record("fault_stale")
        machine.at("P2", lambda: meanwhile(machine, lambda: machine.vm.set_nx_huge_pages(True)))
        assert machine.fault(vcpu, 1) is RetPf.RETRY
        assert stale.args("fault_stale") == [(vcpu, 1, "root")]
        assert_clean(machine)


def test_without_the_stale_check_it_maps_behind_the_zapper() -> None:
    with litmus(MUTANTS["stale-check-skipped"]) as machine:
        machine.add_slot(0, 8)
        vcpu = machine.vcpu()
        machine.at("P2", lambda: meanwhile(machine, lambda: machine.vm.set_nx_huge_pages(True)))
        machine.fault(vcpu, 1)
        expect(machine, "O12 map-in-obsolete-root")
        assert broken(machine) == {"I2"}
        machine.abandon()


# vCPU and IO faults against the mmu_notifier (2.10).


class NotifierIgnored(FaultHandler):
    """Only the root decides whether a fault is stale."""

    def is_page_fault_stale(self, root: RootPage, fault: Fault) -> bool:
        return root.invalid.value


class SequenceIgnored(FaultHandler):
    """What is in progress is seen; what has ended meanwhile is not."""

    def is_page_fault_stale(self, root: RootPage, fault: Fault) -> bool:
        fault.mmu_seq = self.kvm.invalidation.seq.value
        return super().is_page_fault_stale(root, fault)


def touch(machine: Machine, who: str) -> Callable[[], object]:
    """One attempt at gfn 1 by a vCPU, or everything that an IO fault does."""
    fd = machine.export()
    if who == "device":
        return lambda: fd.fault(1, write=True)
    vcpu = machine.vcpu()
    return lambda: machine.fault(vcpu, 1, write=True)


@pytest.mark.parametrize(("who", "point"), [("vcpu", "P1"), ("vcpu", "P2"), ("device", "P1")])
def test_an_invalidation_that_came_and_went_makes_the_fault_stale(who: str, point: str) -> None:
    """P1 is after the sequence snapshot, P2 after the frame was found: the sequence has moved
    on."""
    with litmus() as machine:
        region = machine.add_slot(0, 8)
        attempt = touch(machine, who)
        machine.vm.host.fault_in(region, 1)
        stale = machine.record("fault_stale", "io_fault_retried")
        machine.at(point, lambda: meanwhile(machine, lambda: move_pages(machine, region)))
        result = attempt()
        assert stale.args("fault_stale")[0][1:] == (1, "notifier")
        if who == "vcpu":
            assert result is RetPf.RETRY
            assert machine.leaves(machine.root()) == {}
            assert attempt() is RetPf.FIXED
        else:
            assert result is True
            assert stale.args("io_fault_retried") == [(1,)]
        assert machine.leaves(machine.root()) == {1: region.ptes[1]}
        assert_clean(machine)


@pytest.mark.parametrize("check", [NotifierIgnored, SequenceIgnored])
def test_a_fault_that_ignores_the_sequence_maps_a_frame_that_moved(check: type) -> None:
    with litmus(part(check)) as machine:
        region = machine.add_slot(0, 8)
        vcpu = machine.vcpu()
        machine.at("P2", lambda: meanwhile(machine, lambda: move_pages(machine, region)))
        assert machine.fault(vcpu, 1) is RetPf.FIXED
        assert_found(machine, "INV I7")


def test_a_fault_between_start_and_end_is_retried_until_the_end() -> None:
    with litmus() as machine:
        region = machine.add_slot(0, 8)
        vcpu = machine.vcpu()
        machine.run(vcpu, 1)
        notifier = machine.vm.notifier
        machine.at(
            "P2", lambda: meanwhile(machine, lambda: notifier.invalidate_range_start(region, 0, 4))
        )
        assert machine.fault(vcpu, 2) is RetPf.RETRY
        machine.vm.host.discard(region, 0, 4)
        assert machine.fault(vcpu, 2) is RetPf.RETRY, (
            "the start was before this fault's snapshot: in_progress says so"
        )
        assert machine.fault(vcpu, 5) is RetPf.FIXED, "outside the range"
        meanwhile(machine, lambda: notifier.invalidate_range_end(region, 0, 4))
        assert machine.fault(vcpu, 2) is RetPf.FIXED
        assert_clean(machine)


def test_a_fault_that_ignores_what_is_in_progress_maps_a_frame_that_is_about_to_go() -> None:
    with litmus(part(NotifierIgnored)) as machine:
        region = machine.add_slot(0, 8)
        vcpu = machine.vcpu()
        machine.vm.host.fault_in(region, 2)
        meanwhile(machine, lambda: machine.vm.notifier.invalidate_range_start(region, 0, 4))
        assert machine.fault(vcpu, 2) is RetPf.FIXED
        machine.vm.host.discard(region, 0, 4)
        machine.vm.notifier.invalidate_range_end(region, 0, 4)
        assert_found(machine, "INV I7")


def test_range_start_waits_for_a_guest_that_uses_the_page_and_not_longer() -> None:
    """P12 to the unlock: the flush returns when the vCPU has left the guest; its access before that
    was right."""
    with litmus() as machine:
        region = machine.add_slot(0, 8)
        vcpu = machine.vcpu()
        machine.run(vcpu, 1)
        reclaiming: list[Task] = []

        def take_it() -> None:
            reclaiming.append(
                until_stuck(machine, lambda: reclaim(machine, region), "leave guest mode")
            )
            assert not ended(machine, reclaiming[0])

        vcpu.run(Steps(1, take_it, 1, 1), 3)
        finish_all(machine, reclaiming)
        assert machine.kvm.stat.remote_tlb_flush.value == 1
        assert_clean(machine)


# IO fault against vCPU fault on the same gfn (R7).


@both_ways
@pytest.mark.parametrize("point", ["queued", "P1"])
def test_r7_an_io_fault_that_a_vcpu_has_resolved_meanwhile(posted: bool, point: str) -> None:
    with litmus(*defect("r7-spurious-is-failure", posted)) as machine:
        machine.add_slot(0, 8)
        device, hwpt = machine.attach(machine.export())
        vcpu = machine.vcpu()

        def map_it() -> None:
            meanwhile(machine, lambda: machine.run(vcpu, w(1)))

        assert device.transact(1, write=True) is None, "the fault is queued"
        if point == "queued":
            map_it()
        else:
            machine.at("P1", map_it)
        assert hwpt.io_fault(1, write=True) is not posted
        if posted:
            expect(machine, "O16 io-fault-answer")
            assert_found(machine, "INV I19")
        else:
            assert device.transact(1, write=True) is Dma.DONE
            assert_clean(machine)


def test_an_io_fault_that_loses_the_exchange_to_a_vcpu_tries_again_and_succeeds() -> None:
    """P4: both have read an empty entry."""
    with litmus() as machine:
        machine.add_slot(0, 8)
        _, hwpt = machine.attach(machine.export())
        vcpu = machine.vcpu()
        machine.run(vcpu, w(2))
        retried = machine.record("io_fault_retried")
        machine.at("P4", lambda: meanwhile(machine, lambda: machine.run(vcpu, w(1))))
        assert hwpt.io_fault(1, write=True)
        assert retried.args("io_fault_retried") == [(1,)]
        assert_clean(machine)


def test_two_vcpus_that_need_the_same_table_make_one() -> None:
    with litmus() as machine:
        machine.add_slot(0, 64)
        first, second = machine.vcpu(), machine.vcpu()
        answers: list[RetPf] = []
        machine.at(
            "P4", lambda: meanwhile(machine, lambda: answers.append(machine.fault(second, 22)))
        )
        assert machine.fault(first, 21) is RetPf.RETRY
        assert answers == [RetPf.FIXED]
        assert machine.fault(first, 21) is RetPf.FIXED
        assert machine.tables(machine.root()) == [(16, 2), (20, 1)]
        assert_clean(machine)


# IO fault retry after the host has split a huge page (R8).


@both_ways
def test_r8_a_huge_page_is_split_between_two_attempts(posted: bool) -> None:
    with litmus(*defect("r8-stale-fault-state", posted), huge_2m=8) as machine:
        region = add_huge_slot(machine)
        _, hwpt = machine.attach(machine.export())
        vcpu = machine.vcpu()
        machine.run(vcpu, 9)
        split: list[bool] = []

        def split_it(_: int) -> None:
            if not split:
                split.append(True)
                meanwhile(machine, lambda: move_pages(machine, region, 0, 4))

        machine.on(io_fault_retried=split_it)
        machine.at("P4", lambda: meanwhile(machine, lambda: machine.fault(vcpu, 2)))
        hwpt.io_fault(1, write=True)
        assert split, "the first attempt lost the exchange for the 2M leaf"
        if posted:
            expect(machine, "O7 spte-transition")
            assert "not aligned to its level" in machine.splats()
            assert broken(machine) == {"I7"}
            machine.abandon()
        else:
            assert machine.leaves(machine.root())[1] == region.ptes[1]
            assert_clean(machine)


def test_r8_cannot_happen_to_a_vcpu() -> None:
    """Its fault structure is renewed at every exit."""
    with litmus(POSTED["r8-stale-fault-state"], huge_2m=8) as machine:
        region = add_huge_slot(machine)
        machine.export()
        first, second = machine.vcpu(), machine.vcpu()
        machine.run(first, 9)
        machine.at("P4", lambda: meanwhile(machine, lambda: machine.fault(second, 2)))
        assert machine.fault(first, 1) is RetPf.RETRY
        meanwhile(machine, lambda: move_pages(machine, region, 0, 4))
        assert machine.fault(first, 1) is RetPf.FIXED
        assert machine.leaves(machine.root())[1] == region.ptes[1]
        assert_clean(machine)


# NX toggle against a fault in flight (R10).


@both_ways
@pytest.mark.parametrize("kind", ["read", "fetch"])
def test_r10_the_mitigation_is_switched_on_while_a_fault_is_in_flight(
    posted: bool, kind: str
) -> None:
    with litmus(*defect("r10-nx-toggle-race", posted), huge_2m=4) as machine:
        add_huge_slot(machine)
        machine.export()
        vcpu = machine.vcpu()
        machine.at("P2", lambda: meanwhile(machine, lambda: machine.vm.set_nx_huge_pages(True)))
        result = fetch(machine, vcpu, 1) if kind == "fetch" else machine.fault(vcpu, 1)
        if posted:
            assert result is RetPf.FIXED
            expect(machine, "O14 executable-huge-leaf")
            assert_found(machine, "O14 I17")
        else:
            assert result is RetPf.RETRY
            machine.run(vcpu, 1)
            assert fetch(machine, vcpu, 5) is RetPf.FIXED
            assert_clean(machine)


@both_ways
def test_r10_a_root_that_is_not_exported_needs_no_mend(posted: bool) -> None:
    with litmus(*defect("r10-nx-toggle-race", posted), huge_2m=4) as machine:
        add_huge_slot(machine)
        vcpu = machine.vcpu()
        machine.at("P2", lambda: meanwhile(machine, lambda: machine.vm.set_nx_huge_pages(True)))
        assert machine.fault(vcpu, 1) is RetPf.RETRY, "its root is invalid"
        assert_clean(machine)


def test_r10_a_root_exported_when_the_knob_changed_needs_the_mend_afterwards_too() -> None:
    """It was kept valid then; that it is un-exported by now says nothing about the fault's
    policy."""
    with litmus(huge_2m=4) as machine:
        add_huge_slot(machine)
        fd = machine.export()
        vcpu = machine.vcpu()
        machine.at(
            "P2", lambda: meanwhile(machine, lambda: machine.vm.set_nx_huge_pages(True), fd.put)
        )
        assert machine.fault(vcpu, 1) is RetPf.RETRY
        machine.run(vcpu, 1)
        assert_clean(machine)


def test_r10_an_io_fault_holds_slots_lock_and_the_toggle_waits_for_it() -> None:
    with litmus(POSTED["r10-nx-toggle-race"], huge_2m=4) as machine:
        add_huge_slot(machine)
        fd = machine.export()
        toggling: list[Task] = []
        machine.at(
            "P1",
            lambda: toggling.append(
                until_stuck(machine, lambda: machine.vm.set_nx_huge_pages(True), "slots_lock")
            ),
        )
        assert fd.fault(1, write=False)
        finish_all(machine, toggling)
        assert machine.leaves(machine.root()) == {}
        assert_clean(machine)


# NX recovery of a deleted slot's tables (R11).


@both_ways
def test_r11_the_recovery_worker_meets_the_table_of_a_deleted_slot(posted: bool) -> None:
    with litmus(*defect("r11-nx-recovery-warns", posted), huge_2m=4, nx_huge_pages=True) as machine:
        add_huge_slot(machine)
        machine.export()
        assert fetch(machine, machine.vcpu(), 1) is RetPf.FIXED
        machine.regions[0, 1] = machine.vm.host.mmap(4)
        set_flags(machine, KVM_MEM_LOG_DIRTY_PAGES, slot=1, gfn=32)
        meanwhile(machine, machine.delete_slot)
        assert len(machine.kvm.possible_nx_huge_pages.pages()) == 1
        assert machine.vm.recover_nx_huge_pages() == 1
        expect(machine, *(["O9 nx-recovery-no-slot"] if posted else []))
        assert machine.kvm.possible_nx_huge_pages.pages() == ()
        machine.assert_sound()


# A page that user space brings in, and a memslot ioctl on the way (R17).


@both_ways
def test_r17_the_userfaultfd_handler_needs_a_memslot_ioctl(posted: bool) -> None:
    with litmus(*defect("r17-gup-under-slots-lock", posted)) as machine:
        queue: Queue[tuple[object, int]] = machine.runtime.queue()
        region = machine.add_slot(0, 8, userfaults=queue)
        _, hwpt = machine.attach(machine.export())
        answers: list[bool] = []

        def handle() -> None:
            machine.add_slot(8, 8, slot=1)
            _, index = queue.take() or (None, 0)
            machine.vm.host.resolve(region, index)

        worker = until_stuck(
            machine, lambda: answers.append(hwpt.io_fault(3, write=True)), "userfaultfd"
        )
        assert len(queue) == 1
        handler = until_stuck(machine, handle, "slots_lock")
        if posted:
            assert not ended(machine, handler)
            assert (worker.waiting_for, handler.waiting_for) == ("userfaultfd", "slots_lock"), (
                "each waits for the other"
            )
            meanwhile(machine, lambda: machine.vm.host.resolve(region, 3))
        finish_all(machine, [worker, handler])
        assert answers == [True]
        assert_clean(machine)
