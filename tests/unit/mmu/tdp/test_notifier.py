"""MMU notifiers: when the start returns nobody uses the pages, until the end nobody maps them, and
both see the same slots."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from mmu.errors import KvmError
from mmu.export.device import Dma
from mmu.machine.vcpu import Vcpu
from mmu.memory.host import Region
from mmu.memory.memslots import Change, MemoryRegion
from mmu.memory.requests import KVM_REQ_TLB_FLUSH
from mmu.sync.lockdep import WRITE
from mmu.tdp.fault import RetPf
from tests.conftest import blocked, finish, together, writing
from tests.model import Machine, ParkedGuest, w
from tests.patience import PATIENCE
from tests.unit.conftest import MakeMachine


@pytest.fixture
def region(machine: Machine) -> Region:
    """The memory of a slot at gfns 8..23."""
    return machine.add_slot(8, 16)


@pytest.fixture
def vcpu(machine: Machine, region: Region) -> Vcpu:
    """A vCPU that has used gfns 9, 10 and 20: pages 1, 2 and 12."""
    vcpu = machine.vcpu()
    machine.run(vcpu, 9, w(10), 20)
    return vcpu


# Start.


@pytest.mark.parametrize(
    ("first", "last", "left"),
    [(1, 2, [10, 20]), (0, 3, [20]), (2, 13, [9]), (0, 16, []), (3, 12, [9, 10, 20])],
)
def test_a_start_unmaps_its_range_and_nothing_else(
    machine: Machine, region: Region, vcpu: Vcpu, first: int, last: int, left: list[int]
) -> None:
    with machine.invalidating(region, first, last):
        assert sorted(machine.leaves(machine.root())) == left
    machine.assert_sound()


def test_a_start_that_found_something_flushes_before_it_drops_the_lock(
    machine: Machine, region: Region, vcpu: Vcpu
) -> None:
    events = machine.record(
        "mmu_write_locked",
        "spte_zapped",
        "flush_begin",
        "flush_end",
        "mmu_write_unlocking",
        "range_started",
    )
    machine.vm.notifier.invalidate_range_start(region, 1, 3)
    locked, *rest = events.names()
    assert locked == "mmu_write_locked"
    assert rest == [
        "spte_zapped",
        "spte_zapped",
        "flush_begin",
        "flush_end",
        "mmu_write_unlocking",
        "range_started",
    ]
    assert vcpu.state.requests.value == KVM_REQ_TLB_FLUSH
    assert events.args("range_started")[0][:3] == (region, 1, 3)
    machine.vm.notifier.invalidate_range_end(region, 1, 3)


def test_a_start_that_found_nothing_flushes_nothing(
    machine: Machine, region: Region, vcpu: Vcpu
) -> None:
    flushes = machine.record("flush_begin")
    with machine.invalidating(region, 3, 12):
        pass
    assert flushes.events == []


def test_memory_that_is_in_no_slot_is_nobodys_business(machine: Machine, vcpu: Vcpu) -> None:
    other = machine.vm.host.mmap(4)
    before = machine.kvm.invalidation.seq.value
    locked = machine.record("mmu_write_locked")
    with machine.invalidating(other):
        assert machine.kvm.invalidation.in_progress.value == 0
        assert machine.kvm.mn_active_invalidate_count.value == 1, (
            "but memslot updates wait, so that the end sees the same slots"
        )
    assert locked.events == []
    assert machine.kvm.invalidation.seq.value == before
    machine.assert_sound()


def test_pages_beyond_the_slot_are_not_the_slots(machine: Machine) -> None:
    host = machine.vm.host
    region = host.mmap(16)
    host.assign(region, 0)
    machine.regions[0, 0] = region
    machine.vm.set_user_memory_region(MemoryRegion(0, 0, 8, region))
    with machine.kvm.slots_lock:
        assert machine.vm.notifier.slots(region, 8, 16) == []
        assert len(machine.vm.notifier.slots(region, 7, 16)) == 1
        slot = machine.slot()
        assert machine.vm.notifier.gfn_range(slot, slot.region, 6, 16) == (6, 8)


def test_a_running_guest_has_left_before_the_start_returns(
    machine: Machine, region: Region, vcpu: Vcpu
) -> None:
    guest = ParkedGuest(9)
    runner = machine.runtime.spawn("vcpu", lambda: vcpu.run(guest, 1))
    assert guest.inside.wait(PATIENCE)
    waiter = blocked(
        machine.runtime,
        lambda: machine.vm.notifier.invalidate_range_start(region, 1, 2),
        lambda task: "guest" in task.waiting_for,
    )
    guest.leave.set()
    finish(machine.runtime, waiter)
    machine.vm.notifier.invalidate_range_end(region, 1, 2)
    finish(machine.runtime, runner)
    assert vcpu.stat.kicks == 1
    assert vcpu.state.requests.value == KVM_REQ_TLB_FLUSH, "its next entry forgets what it knew"
    machine.assert_sound()


def test_devices_have_forgotten_the_pages_before_the_start_returns(
    machine: Machine, region: Region
) -> None:
    device, hwpt = machine.attach(machine.export())
    assert hwpt.io_fault(9, write=True)
    assert device.transact(9, write=True) is Dma.DONE
    with machine.invalidating(region, 1, 2):
        assert device.transact(9, write=True) is None
    assert hwpt.io_fault(9, write=True)
    assert device.transact(9, write=True) is Dma.DONE
    machine.assert_sound()


def test_every_root_of_the_address_space_is_unmapped_even_an_invalid_one(
    machine: Machine, region: Region, vcpu: Vcpu
) -> None:
    vcpu.set_guest_mode(nested=True)
    machine.run(vcpu, 9)
    nested = vcpu.root
    assert nested is not None
    old = machine.root()
    with writing(machine.mmu_lock):
        machine.vm.roots.invalidate(old)
    with machine.invalidating(region):
        assert machine.leaves(old) == machine.leaves(nested) == {}
    with machine.kvm.slots_lock:
        machine.vm.zapper.zap_invalidated_roots()
    machine.vm.requests.make_all_cpus_request(1 << 31)
    machine.run(vcpu, 9)
    machine.assert_sound()


def test_huge_pages_of_which_a_part_goes_are_unmapped_whole(huge: Machine) -> None:
    region = huge.add_slot(0, 16, max_level=2)
    vcpu = huge.vcpu()
    huge.run(vcpu, 5, 9)
    with huge.invalidating(region, 7, 8):
        assert huge.huge_leaves() == [(8, 2)]
    huge.run(vcpu, 5)
    huge.assert_sound()


# Between start and end.


def test_between_start_and_end_nobody_maps_the_range(
    machine: Machine, region: Region, vcpu: Vcpu
) -> None:
    with machine.invalidating(region, 1, 3):
        assert [machine.fault(vcpu, gfn) for gfn in (8, 9, 10, 11)] == [
            RetPf.FIXED,
            RetPf.RETRY,
            RetPf.RETRY,
            RetPf.FIXED,
        ]
    assert machine.fault(vcpu, 9) is RetPf.FIXED


def test_a_frame_that_was_looked_up_before_the_start_is_not_mapped_after_the_end(
    machine: Machine, region: Region
) -> None:
    """The sequence covers what began and ended while a fault was on its way."""
    vcpu = machine.vcpu()
    old: list[int] = []

    def replace() -> None:
        old.append(region.ptes[1])
        machine.discard(region, 1, 2)

    machine.at("P2", lambda: together(machine.runtime, replace))
    assert machine.fault(vcpu, 9) is RetPf.RETRY
    assert machine.fault(vcpu, 9) is RetPf.FIXED
    assert machine.leaves(machine.root()) == {9: region.ptes[1]}
    assert region.ptes[1] != old[0]
    machine.assert_sound()


def test_a_migrated_page_is_found_at_its_new_place_with_its_data(
    machine: Machine, region: Region, vcpu: Vcpu
) -> None:
    with machine.invalidating(region, 2, 3):
        assert machine.vm.host.migrate(region, 2, 3) == 1
    machine.run(vcpu, 10, w(10))
    assert machine.leaves(machine.root())[10] == region.ptes[2]
    machine.assert_sound()


def test_without_a_notifier_the_guest_would_use_the_old_frame(
    machine: Machine, region: Region, vcpu: Vcpu
) -> None:
    """What all of this is for."""
    machine.vm.host.migrate(region, 2, 3)
    machine.run(vcpu, 10)
    assert [found[1] for found in machine.wrong] == [10]
    machine.abandon()


def test_ranges_that_are_invalidated_at_once_are_covered_together(
    machine: Machine, region: Region, vcpu: Vcpu
) -> None:
    with machine.invalidating(region, 1, 2):
        with machine.invalidating(region, 4, 6):
            assert machine.kvm.invalidation.range.value == (region.hva + 1, region.hva + 6)
            assert machine.fault(vcpu, 11) is RetPf.RETRY, "what lies in between waits as well"
            assert machine.fault(vcpu, 14) is RetPf.FIXED
        assert machine.fault(vcpu, 9) is RetPf.RETRY, "the first is not over"
    assert machine.fault(vcpu, 9) is RetPf.FIXED
    with machine.invalidating(region, 8, 9):
        assert machine.kvm.invalidation.range.value == (region.hva + 8, region.hva + 9), (
            "a new range, not a wider one"
        )


def test_the_end_counts_up_before_it_lets_faults_through(machine: Machine) -> None:
    """Otherwise a fault could see neither: not in progress any more, and the old sequence."""
    seen: list[tuple[int, int]] = []
    invalidation = machine.kvm.invalidation
    before = invalidation.seq.value

    class Watched(type(invalidation.in_progress)):  # type: ignore[misc]
        __slots__ = ()

        def fetch_add(self, amount: int) -> int:
            if amount < 0:
                seen.append((invalidation.seq.value, self.value))
            return int(super().fetch_add(amount))

    invalidation.in_progress.__class__ = Watched
    with writing(machine.mmu_lock):
        invalidation.begin(0, 1)
        invalidation.end()
    assert seen == [(before + 1, 1)]


def test_an_end_without_a_start_is_reported(machine: Machine, region: Region) -> None:
    with writing(machine.mmu_lock):
        machine.kvm.invalidation.end()
    machine.expect("O9 invalidate-underflow")
    machine.kvm.invalidation.in_progress.add(1)


@pytest.mark.parametrize(
    ("hva", "seq", "retry"),
    [(4, 0, True), (5, 0, True), (6, 0, False), (3, 0, False), (3, 1, True), (6, -1, True)],
)
def test_what_a_fault_has_to_repeat(machine: Machine, hva: int, seq: int, retry: bool) -> None:
    with writing(machine.mmu_lock):
        machine.kvm.invalidation.begin(4, 6)
        assert (
            machine.kvm.invalidation.retry(machine.kvm.invalidation.seq.value + seq, hva) == retry
        )
        machine.kvm.invalidation.end()


def test_when_nothing_is_in_progress_only_the_sequence_counts(machine: Machine) -> None:
    invalidation = machine.kvm.invalidation
    with writing(machine.mmu_lock):
        invalidation.begin(4, 6)
        seq = invalidation.seq.value
        invalidation.end()
        assert not invalidation.in_range(4)
        assert invalidation.retry(seq, 100)
        assert not invalidation.retry(seq + 1, 4)


# Memslot updates.


def test_a_memslot_update_waits_for_the_end(machine: Machine, region: Region, vcpu: Vcpu) -> None:
    """B64: start and end must see the same slots."""
    order: list[str] = []

    def delete() -> None:
        machine.delete_slot()
        order.append("deleted")

    machine.vm.notifier.invalidate_range_start(region, 1, 2)
    worker = blocked(machine.runtime, delete, lambda task: "invalidations" in task.waiting_for)
    order.append("end")
    machine.vm.notifier.invalidate_range_end(region, 1, 2)
    finish(machine.runtime, worker)
    assert order == ["end", "deleted"]
    machine.assert_sound()


def test_a_notifier_runs_while_a_memslot_update_holds_its_locks(
    machine: Machine, region: Region, vcpu: Vcpu
) -> None:
    """It may take neither slots_lock nor slots_arch_lock, whose holder waits for it."""
    done: list[int] = []
    machine.at(
        "P13", lambda: together(machine.runtime, lambda: done.append(machine.discard(region, 1, 2)))
    )
    machine.set_flags(1)
    assert done == [1]
    machine.assert_sound()


def test_the_memory_of_a_slot_that_is_being_deleted_is_still_unmapped(
    machine: Machine, region: Region, vcpu: Vcpu
) -> None:
    """B66: an INVALID slot is still mapped until its zap."""
    left: list[Any] = []
    root = machine.root()

    def notify() -> None:
        machine.discard(region, 1, 2)
        left.append(sorted(machine.leaves(root)))

    machine.at("P14", lambda: together(machine.runtime, notify))
    assert machine.delete_slot() is Change.DELETE
    assert left == [[10, 20]]
    machine.assert_sound()


def test_a_move_is_followed(machine: Machine, region: Region, vcpu: Vcpu) -> None:
    machine.move_slot(32)
    machine.run(vcpu, 33)
    with machine.invalidating(region, 1, 2):
        assert machine.leaves(machine.root()) == {}
    machine.run(vcpu, 33)
    machine.assert_sound()


# Age.


def test_young_pages_are_made_old_once(machine: Machine, region: Region, vcpu: Vcpu) -> None:
    notifier = machine.vm.notifier
    assert notifier.test_young(region, 0, 16)
    assert notifier.clear_young(region, 0, 3)
    assert not notifier.clear_young(region, 0, 3)
    assert notifier.test_young(region, 12, 13)
    assert not notifier.test_young(region, 3, 12)
    assert not notifier.test_young(machine.vm.host.mmap(4), 0, 4)
    machine.assert_sound()


@pytest.mark.parametrize("flush", [True, False])
def test_only_clear_flush_young_flushes_and_only_for_young_pages(
    machine: Machine, region: Region, vcpu: Vcpu, flush: bool
) -> None:
    age = machine.vm.notifier.clear_flush_young if flush else machine.vm.notifier.clear_young
    events = machine.record("flush_begin")
    held: list[int] = []
    machine.on(flush_begin=lambda *_: held.append(machine.mmu_lock.held_mode()))
    assert age(region, 0, 16)
    assert not age(region, 0, 16)
    assert [args[0] for args in events.args("flush_begin")] == ["young"] * flush
    assert held == [WRITE] * flush
    assert machine.leaves(machine.root())


# Release.


def test_when_the_process_exits_nothing_stays_mapped(
    machine: Machine, region: Region, vcpu: Vcpu
) -> None:
    device, hwpt = machine.attach(machine.export())
    assert hwpt.io_fault(12, write=True)
    assert device.transact(12, write=True) is Dma.DONE
    machine.vm.exit_mm()
    assert [machine.leaves(root) for root in machine.vm.roots.snapshot()] == [{}]
    assert region.dead.value
    assert device.transact(12, write=True) is None, "files are closed later than memory goes (R12)"
    assert not hwpt.io_fault(12, write=True)
    with pytest.raises(KvmError, match="EIO"):
        machine.run(vcpu, 9)
    assert machine.wrong == []


def test_no_table_is_freed_before_a_device_was_told(machine: Machine, region: Region) -> None:
    """Its partial walks go with the flush; a grace period may not be over before."""
    device, hwpt = machine.attach(machine.export())
    assert hwpt.io_fault(9, write=True)
    assert device.transact(9, write=True) is Dma.DONE
    done = threading.Event()

    def dma_meanwhile(*_: Any) -> None:
        """Whatever is not protected by RCU now is free before the device walks."""
        if not machine.kvm.rcu.read_held() and not done.is_set():
            together(machine.runtime, machine.kvm.rcu.barrier)
        done.set()
        together(machine.runtime, lambda: device.transact(10, write=False))

    machine.on(flush_begin=dma_meanwhile)
    machine.vm.exit_mm()
    assert done.is_set()
    machine.expect()


def test_an_io_fault_keeps_the_process_alive_until_it_is_answered(
    make_machine: MakeMachine,
) -> None:
    machine = make_machine()
    machine.add_slot(8, 16)
    fd = machine.export()
    dead: list[bool] = []
    machine.at("P1", machine.vm.exit_mm)
    machine.on(io_fault_answered=lambda *_: dead.append(machine.kvm.mm_gone.value))
    assert fd.fault(9, write=True)
    assert dead == [False]
    assert machine.kvm.mm_gone.value
    assert machine.leaves(fd.metadata().root) == {}
    assert not fd.fault(9, write=True)
