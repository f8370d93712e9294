"""Notifiers where several memslots share a host mapping: which slots are walked, in what order, and
what becomes of the flush that one of them owes."""

from __future__ import annotations

import pytest

from mmu.candidates import CANDIDATES
from mmu.errors import KvmError
from mmu.memory.host import Region, tag_of
from mmu.memory.memslots import KVM_MEM_READONLY, Change, MemoryRegion
from tests.conftest import finish, srcu_section
from tests.model import Machine, ParkedGuest, w
from tests.patience import PATIENCE
from tests.unit.conftest import MakeMachine

NOT_HANDED_ON = CANDIDATES["flush-not-handed-on"]


def add_part(
    machine: Machine,
    region: Region,
    first: int,
    pages: int,
    gfn: int,
    *,
    slot: int,
    as_id: int = 0,
    flags: int = 0,
) -> None:
    """Give KVM pages [first, first + pages) of a region at `gfn`."""
    writable = not flags & KVM_MEM_READONLY
    machine.vm.host.assign(region, tag_of(as_id, gfn), first, pages, writable=writable)
    machine.vm.set_user_memory_region(MemoryRegion(slot, gfn, pages, region, flags, as_id, first))


@pytest.fixture
def split(machine: Machine) -> Region:
    """Eight pages: four at gfn 8, the others at gfn 32, and two of the first at gfn 9 of SMM."""
    region = machine.vm.host.mmap(8)
    add_part(machine, region, 4, 4, 32, slot=1)
    add_part(machine, region, 0, 4, 8, slot=2)
    add_part(machine, region, 1, 2, 9, slot=3, as_id=1)
    return region


def found(machine: Machine, region: Region, first: int, last: int) -> list[tuple[int, int, int]]:
    """The slots of a range and the guest frames that are walked in each."""
    notifier = machine.vm.notifier
    with srcu_section(machine.kvm.srcu):
        return [
            (slot.id, *notifier.gfn_range(slot, region, first, last))
            for slot in notifier.slots(region, first, last)
        ]


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        (0, 8, [(2, 8, 12), (1, 32, 36), (3, 9, 11)]),
        (3, 5, [(2, 11, 12), (1, 32, 33)]),
        (2, 3, [(2, 10, 11), (3, 10, 11)]),
        (5, 7, [(1, 33, 35)]),
    ],
)
def test_slots_are_walked_in_the_order_of_host_pages_and_one_space_after_the_other(
    machine: Machine,
    split: Region,
    first: int,
    last: int,
    expected: list[tuple[int, int, int]],
) -> None:
    assert found(machine, split, first, last) == expected


def test_a_part_translates_between_guest_and_host(machine: Machine, split: Region) -> None:
    slot = machine.slot(1)
    assert (slot.first_page, slot.origin) == (4, 28)
    assert [slot.hva(gfn) - split.hva for gfn in (32, 35)] == [4, 7]
    copy = slot.copy(flags=0)
    assert (copy.first_page, copy.origin) == (4, 28)


def test_a_fault_in_a_part_maps_the_right_page(machine: Machine, split: Region) -> None:
    vcpu = machine.vcpu()
    machine.run(vcpu, w(33), w(11))
    assert split.ptes[5]
    assert split.ptes[3]
    assert sum(1 for pte in split.ptes if pte) == 2
    machine.assert_sound()


@pytest.mark.parametrize(("first", "gfn", "allowed"), [(0, 8, True), (4, 12, True), (4, 13, False)])
def test_a_huge_page_fits_where_guest_and_host_have_one_offset(
    machine: Machine, first: int, gfn: int, allowed: bool
) -> None:
    region = machine.vm.host.mmap(16, max_level=2)
    add_part(machine, region, first, 8, gfn, slot=1)
    assert machine.slot(1).allows(gfn + 4, 2, machine.kvm.geometry) is allowed


@pytest.mark.parametrize(("first", "pages"), [(5, 4), (-1, 4), (8, 1)])
def test_a_part_must_lie_in_its_region(machine: Machine, first: int, pages: int) -> None:
    region = machine.vm.host.mmap(8)
    with pytest.raises(KvmError, match=f"needs a region of at least {first + pages} pages"):
        machine.vm.set_user_memory_region(MemoryRegion(1, 8, pages, region, first_page=first))


def test_the_memory_behind_a_slot_cannot_be_exchanged(machine: Machine, split: Region) -> None:
    with pytest.raises(KvmError, match="its size, backing and READONLY flag cannot change"):
        machine.vm.set_user_memory_region(MemoryRegion(1, 32, 4, split, first_page=3))
    change = machine.vm.set_user_memory_region(MemoryRegion(1, 40, 4, split, first_page=4))
    assert change is Change.MOVE


def test_what_is_taken_is_unmapped_everywhere(machine: Machine, split: Region) -> None:
    vcpu, smm = machine.vcpu(), machine.vm.create_vcpu()
    smm.set_smm(True)
    machine.run(vcpu, w(9), w(32))
    machine.run(smm, w(9))
    machine.discard(split, 0, 8)
    assert [machine.leaves(root) for root in machine.vm.roots.snapshot()] == [{}, {}]
    assert not machine.kvm.invalidation.in_progress.value


def begun(machine: Machine, split: Region) -> list[str]:
    """The first slot has a leaf, the second one from its second page on; mmu_lock is always
    contended. Returns what happens while the whole region is taken."""
    machine.run(machine.vcpu(), w(8), w(33), w(34))
    machine.mmu_lock.needbreak = lambda: True  # type: ignore[method-assign]
    events = machine.record("spte_zapped", "flush_end", "zap_yielded")
    machine.vm.notifier.invalidate_range_start(split, 0, 8)
    machine.vm.notifier.invalidate_range_end(split, 0, 8)
    return events.names()


def test_a_flush_that_is_owed_is_paid_before_the_next_slot_yields(
    machine: Machine, split: Region
) -> None:
    names = begun(machine, split)
    assert names[:3] == ["spte_zapped", "flush_end", "zap_yielded"]
    assert all(
        names[at - 1] == "flush_end" for at, name in enumerate(names) if name == "zap_yielded"
    )


def test_as_kernels_are_the_next_slot_yields_before_it(make_machine: MakeMachine) -> None:
    machine = make_machine(variants=[NOT_HANDED_ON])
    region = machine.vm.host.mmap(8)
    add_part(machine, region, 4, 4, 32, slot=1)
    add_part(machine, region, 0, 4, 8, slot=2)
    assert begun(machine, region)[:2] == ["spte_zapped", "zap_yielded"]


def test_as_kernels_are_the_guest_reads_a_page_that_the_host_has_freed(
    make_machine: MakeMachine,
) -> None:
    """While the walk of the second slot has yielded, another thread takes a page of the first. The
    leaf is gone, so it flushes nothing, and the vCPU still has its translation."""
    machine = make_machine(variants=[NOT_HANDED_ON])
    region = machine.vm.host.mmap(8)
    add_part(machine, region, 0, 4, 8, slot=1)
    add_part(machine, region, 4, 4, 32, slot=2)
    vcpu, guest = machine.vm.create_vcpu(), ParkedGuest(8)
    machine.run(vcpu, w(8), w(33), w(34))
    running = machine.runtime.spawn("vcpu0", lambda: vcpu.run(guest, 1))
    assert guest.inside.wait(PATIENCE)
    flushes = machine.record("flush_begin")
    taken: list[int] = []

    def yield_once(shared: bool) -> None:
        machine.mmu_lock.needbreak = lambda: False  # type: ignore[method-assign]
        machine.mmu_lock.unlock(shared)
        kswapd = machine.runtime.spawn(
            "kswapd", lambda: taken.append(machine.discard(region, 0, 1))
        )
        finish(machine.runtime, kswapd)
        assert flushes.events == []
        guest.leave.set()
        finish(machine.runtime, running)
        machine.mmu_lock.lock(shared)

    machine.mmu_lock.needbreak = lambda: True  # type: ignore[method-assign]
    machine.mmu_lock.cond_resched = yield_once  # type: ignore[method-assign]
    machine.vm.notifier.invalidate_range_start(region, 0, 8)
    machine.vm.notifier.invalidate_range_end(region, 0, 8)
    assert taken == [1]
    assert [(who, gfn) for who, gfn, *_ in machine.wrong] == [("vcpu0", 8)]
    machine.abandon()


def test_what_both_slots_owe_is_flushed_in_the_end(make_machine: MakeMachine) -> None:
    machine = make_machine(variants=[NOT_HANDED_ON])
    region = machine.vm.host.mmap(8)
    add_part(machine, region, 0, 4, 8, slot=2)
    add_part(machine, region, 4, 4, 32, slot=1)
    machine.run(machine.vcpu(), w(8))
    events = machine.record("flush_begin")
    machine.discard(region, 0, 8)
    assert [args[0] for args in events.args("flush_begin")] == ["notifier"]


def test_a_guest_s_write_to_read_only_memory_exits(machine: Machine) -> None:
    region = machine.vm.host.mmap(4)
    add_part(machine, region, 0, 4, 8, slot=1, flags=KVM_MEM_READONLY)
    vcpu = machine.vcpu()
    machine.run(vcpu, 9)
    machine.run(vcpu, w(9))
    machine.run(vcpu, w(10))
    assert vcpu.stat.mmio_exits == 2
    assert machine.wrong == []
    machine.assert_sound()


def test_a_device_s_write_to_read_only_memory_fails(machine: Machine) -> None:
    region = machine.vm.host.mmap(4)
    add_part(machine, region, 0, 4, 8, slot=1, flags=KVM_MEM_READONLY)
    device, hwpt = machine.attach(machine.export())
    assert hwpt.io_fault(9, write=False)
    assert not hwpt.io_fault(9, write=True)
    done = device.transact(9, write=False)
    assert done is not None
    assert done.name == "DONE"
    assert device.transact(9, write=True) is None
    machine.assert_sound()
