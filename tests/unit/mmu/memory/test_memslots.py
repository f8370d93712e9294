"""Memslots: the four changes and their errors, the two copies, and what a look-up may rely on
(reference 2.9)."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from mmu.errors import KvmError
from mmu.memory.host import tag_of
from mmu.memory.memslots import (
    GEN_UPDATE_IN_PROGRESS,
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_READONLY,
    KVM_MEMSLOT_INVALID,
    Change,
    MemoryRegion,
    Memslot,
)
from mmu.sync.poison import is_poisoned
from tests.conftest import blocked, elsewhere, finish, srcu_section
from tests.model import SMALL, Machine

CREATE, DELETE, MOVE, FLAGS_ONLY = Change.CREATE, Change.DELETE, Change.MOVE, Change.FLAGS_ONLY


def slots(machine: Machine, as_id: int = 0) -> tuple[Memslot, ...]:
    """The active slots, in the order of their gfns."""
    return machine.vm.memslots.peek(as_id).index.value[1]


def layout(machine: Machine, as_id: int = 0) -> list[tuple[int, int, int]]:
    """(id, first gfn, one past the last gfn) of the active slots."""
    return [(slot.id, slot.base_gfn, slot.end_gfn) for slot in slots(machine, as_id)]


def generation(machine: Machine, as_id: int = 0) -> int:
    """The generation of the active set."""
    return machine.vm.memslots.peek(as_id).generation.value


def refused(machine: Machine, region: MemoryRegion) -> int:
    """The errno with which the call is refused; nothing may have changed."""
    before, gen = layout(machine), generation(machine)
    with pytest.raises(KvmError) as refusal:
        machine.vm.set_user_memory_region(region)
    assert (layout(machine), generation(machine)) == (before, gen)
    assert not machine.kvm.slots_lock.held()
    assert not machine.kvm.slots_arch_lock.held()
    return refusal.value.errno


# The four changes.


def test_slots_are_created_in_any_order_and_kept_sorted(machine: Machine) -> None:
    for slot, gfn in ((3, 32), (1, 0), (2, 8)):
        machine.add_slot(gfn, 8, slot=slot)
    assert layout(machine) == [(1, 0, 8), (2, 8, 16), (3, 32, 40)]


def test_a_deleted_slot_is_gone(machine: Machine) -> None:
    machine.add_slot(0, 8, slot=1)
    machine.add_slot(8, 8, slot=2)
    assert machine.delete_slot(1) is DELETE
    assert layout(machine) == [(2, 8, 16)]
    assert machine.delete_slot(2) is DELETE
    assert layout(machine) == []


def test_a_moved_slot_is_at_its_new_place_only(machine: Machine) -> None:
    machine.add_slot(0, 8)
    assert machine.move_slot(40) is MOVE
    assert layout(machine) == [(0, 40, 48)]


def test_a_slot_may_move_over_itself(machine: Machine) -> None:
    machine.add_slot(0, 8)
    assert machine.move_slot(4) is MOVE
    assert layout(machine) == [(0, 4, 12)]


def test_new_flags_are_new_flags(machine: Machine) -> None:
    region = machine.add_slot(0, 8)
    change = machine.vm.set_user_memory_region(
        MemoryRegion(0, 0, 8, region, KVM_MEM_LOG_DIRTY_PAGES)
    )
    assert change is FLAGS_ONLY
    assert slots(machine)[0].flags == KVM_MEM_LOG_DIRTY_PAGES


def test_asking_for_what_is_already_there_does_nothing(machine: Machine) -> None:
    region = machine.add_slot(0, 8)
    events = machine.record("memslot_begin")
    before = slots(machine)
    machine.vm.set_user_memory_region(MemoryRegion(0, 0, 8, region))
    assert slots(machine) == before
    assert events.events == []


def test_address_spaces_are_independent(machine: Machine) -> None:
    machine.add_slot(0, 8, slot=1, as_id=0)
    machine.add_slot(0, 8, slot=1, as_id=1)
    machine.delete_slot(1, as_id=0)
    assert layout(machine, 0) == []
    assert layout(machine, 1) == [(1, 0, 8)]
    assert (generation(machine, 0), generation(machine, 1)) == (6, 3)


# Refusals.


@pytest.mark.parametrize(("gfn", "npages"), [(8, 8), (0, 9), (15, 2), (4, 20), (8, 1), (15, 1)])
def test_an_overlap_is_refused(machine: Machine, gfn: int, npages: int) -> None:
    machine.add_slot(8, 8, slot=1)
    assert (
        refused(machine, MemoryRegion(2, gfn, npages, machine.vm.host.mmap(npages))) == errno.EEXIST
    )


@pytest.mark.parametrize(("gfn", "npages"), [(0, 8), (16, 8)])
def test_touching_is_no_overlap(machine: Machine, gfn: int, npages: int) -> None:
    machine.add_slot(8, 8, slot=1)
    assert machine.add_slot(gfn, npages, slot=2)


def test_a_move_onto_another_slot_is_refused(machine: Machine) -> None:
    machine.add_slot(0, 8, slot=1)
    machine.add_slot(16, 8, slot=2)
    assert refused(machine, MemoryRegion(1, 17, 8, machine.regions[0, 1])) == errno.EEXIST


@pytest.mark.parametrize("change", ["smaller", "larger", "other memory", "read-only"])
def test_size_backing_and_readonly_cannot_change(machine: Machine, change: str) -> None:
    host = machine.vm.host
    region = host.mmap(16)
    host.assign(region, tag_of(0, 0))
    machine.vm.set_user_memory_region(MemoryRegion(0, 0, 8, region))
    wanted = {
        "smaller": MemoryRegion(0, 0, 4, region),
        "larger": MemoryRegion(0, 0, 16, region),
        "other memory": MemoryRegion(0, 0, 8, host.mmap(8)),
        "read-only": MemoryRegion(0, 0, 8, region, KVM_MEM_READONLY),
    }
    assert refused(machine, wanted[change]) == errno.EINVAL


def test_what_is_not_there_cannot_be_deleted(machine: Machine) -> None:
    machine.add_slot(0, 8, slot=1)
    assert refused(machine, MemoryRegion(2, 0, 0)) == errno.EINVAL
    assert refused(machine, MemoryRegion(1, 0, 0, as_id=1)) == errno.EINVAL


@pytest.mark.parametrize(
    ("gfn", "npages"),
    [(SMALL.max_gfn, 2), (SMALL.max_gfn + 1, 1), (-1, 2), (0, SMALL.max_gfn + 2)],
)
def test_a_slot_outside_of_the_guest_is_refused(machine: Machine, gfn: int, npages: int) -> None:
    assert (
        refused(machine, MemoryRegion(0, gfn, npages, machine.vm.host.mmap(npages))) == errno.EINVAL
    )


def test_the_last_frame_of_the_guest_can_be_used(machine: Machine) -> None:
    machine.add_slot(SMALL.max_gfn, 1)
    assert layout(machine) == [(0, 63, 64)]


@pytest.mark.parametrize("pages", [None, 3])
def test_a_slot_needs_enough_memory_behind_it(machine: Machine, pages: int | None) -> None:
    region = None if pages is None else machine.vm.host.mmap(pages)
    assert refused(machine, MemoryRegion(0, 0, 4, region)) == errno.EINVAL


@pytest.mark.parametrize("as_id", [2, -1])
def test_an_address_space_that_does_not_exist_is_refused(machine: Machine, as_id: int) -> None:
    assert (
        refused(machine, MemoryRegion(0, 0, 4, machine.vm.host.mmap(4), as_id=as_id))
        == errno.EINVAL
    )


def test_a_negative_size_is_refused(machine: Machine) -> None:
    assert refused(machine, MemoryRegion(0, 8, -1, machine.vm.host.mmap(4))) == errno.EINVAL


def test_flags_that_user_space_does_not_have_are_refused(machine: Machine) -> None:
    """INVALID is KVM's own: a slot that stays so is retried by every vCPU for ever."""
    region = machine.vm.host.mmap(4)
    for flags in (KVM_MEMSLOT_INVALID, 1 << 5):
        assert refused(machine, MemoryRegion(0, 0, 4, region, flags)) == errno.EINVAL


# The swap.


def test_each_swap_advances_the_generation_by_the_number_of_address_spaces(
    machine: Machine,
) -> None:
    """CREATE and FLAGS_ONLY swap once, DELETE and MOVE twice."""
    assert (generation(machine, 0), generation(machine, 1)) == (0, 1)
    region = machine.add_slot(0, 8)
    assert generation(machine) == 2
    machine.vm.set_user_memory_region(MemoryRegion(0, 0, 8, region, KVM_MEM_LOG_DIRTY_PAGES))
    assert generation(machine) == 4
    machine.vm.set_user_memory_region(MemoryRegion(0, 32, 8, region))
    assert generation(machine) == 8
    machine.delete_slot()
    assert generation(machine) == 12
    assert generation(machine, 1) == 1


def test_a_generation_is_marked_while_its_swap_is_not_over(machine: Machine) -> None:
    seen: list[int] = []
    machine.on(point=lambda name: seen.append(generation(machine)) if name == "P13" else None)
    machine.add_slot(0, 8)
    machine.delete_slot()
    assert list(dict.fromkeys(seen)) == [
        0 | GEN_UPDATE_IN_PROGRESS,
        2 | GEN_UPDATE_IN_PROGRESS,
        4 | GEN_UPDATE_IN_PROGRESS,
    ]
    assert len(seen) == 6, "before the wait and after it, until the very end"
    assert generation(machine) == 6


def test_slots_arch_lock_is_released_before_the_wait_for_srcu(machine: Machine) -> None:
    held: list[tuple[bool, bool]] = []

    def note(name: str) -> None:
        if name == "P13":
            held.append((machine.kvm.slots_lock.held(), machine.kvm.slots_arch_lock.held()))

    machine.add_slot(0, 8)
    machine.on(point=note)
    machine.delete_slot()
    assert held == [(True, False)] * 4, "two swaps: before the wait and after it"


def test_the_swap_waits_for_those_who_look_at_the_old_set(machine: Machine) -> None:
    machine.add_slot(0, 8)
    with elsewhere(machine.runtime, srcu_section(machine.kvm.srcu)):
        worker = blocked(
            machine.runtime, machine.delete_slot, lambda task: "grace period" in task.waiting_for
        )
        assert [slot.invalid for slot in slots(machine)] == [True], "published, but not yet zapped"
    finish(machine.runtime, worker)
    assert layout(machine) == []


def test_both_copies_end_up_alike(machine: Machine) -> None:
    """Otherwise the next change would bring back what an earlier one removed."""
    machine.add_slot(0, 4, slot=1)
    machine.add_slot(4, 4, slot=2)
    machine.delete_slot(1)
    machine.add_slot(16, 4, slot=3)
    machine.move_slot(32, slot=2)
    for copy in machine.vm.memslots._sets[0]:
        assert [(slot.id, slot.base_gfn) for slot in copy.index.value[1]] == [(3, 16), (2, 32)]


# Delete and move, seen from outside.


@pytest.mark.parametrize("change", ["delete", "move"])
def test_the_old_slot_is_invalid_before_it_is_unmapped(machine: Machine, change: str) -> None:
    machine.add_slot(0, 8)
    machine.fault(machine.vcpu(), 1)
    seen: list[tuple[str, list[tuple[int, bool]]]] = []

    def note(what: str) -> Any:
        return lambda *_: seen.append(
            (what, [(slot.base_gfn, slot.invalid) for slot in slots(machine)])
        )

    machine.on(zap_all_fast=note("zap"), memslot_gone=note("gone"))
    machine.delete_slot() if change == "delete" else machine.move_slot(32)
    assert seen == [("zap", [(0, True)]), ("gone", [] if change == "delete" else [(32, False)])]


@pytest.mark.parametrize("change", ["create", "flags"])
def test_nothing_is_unmapped_for_a_new_slot_or_new_flags(machine: Machine, change: str) -> None:
    region = machine.add_slot(0, 8)
    machine.fault(machine.vcpu(), 1)
    events = machine.record("zap_all_fast", "spte_zapped", "flush_begin", "memslot_gone")
    if change == "create":
        machine.add_slot(8, 8, slot=1)
    else:
        machine.vm.set_user_memory_region(MemoryRegion(0, 0, 8, region, KVM_MEM_LOG_DIRTY_PAGES))
    logging = [("flush_begin", ("dirty-log", 0, 8))]
    assert events.events == (logging if change == "flags" else []), (
        "logging is switched on with a flush, and nothing else happens"
    )


@pytest.mark.parametrize("exported", [True, False])
@pytest.mark.parametrize("change", ["delete", "move"])
def test_when_the_call_returns_nothing_maps_the_old_range(
    machine: Machine, change: str, exported: bool
) -> None:
    machine.add_slot(0, 8)
    machine.add_slot(16, 4, slot=1)
    if exported:
        machine.export()
    vcpu = machine.vcpu()
    machine.run(vcpu, 1, ~2, 17)
    machine.delete_slot() if change == "delete" else machine.move_slot(32)
    machine.assert_sound()
    assert all(machine.leaves(root) == {} for root in machine.vm.roots.snapshot())
    machine.run(vcpu, 17, ~18)
    machine.assert_sound()


def test_the_call_is_told_from_begin_to_end_with_its_parts(machine: Machine) -> None:
    events = machine.record("memslot_begin", "memslot_gone", "memslot_end")
    machine.add_slot(0, 8, slot=4)
    machine.delete_slot(4)
    assert [(name, args[0]) for name, args in events.events if name != "memslot_gone"] == [
        ("memslot_begin", CREATE),
        ("memslot_end", CREATE),
        ("memslot_begin", DELETE),
        ("memslot_end", DELETE),
    ]
    create, delete = (args[2] for args in events.args("memslot_end"))
    assert set(create) == {"srcu", "commit", "total"}
    assert set(delete) == {"srcu", "flush_shadow", "commit", "total"}
    assert delete["srcu"] + delete["flush_shadow"] + delete["commit"] <= delete["total"]


# Look-up.


@pytest.mark.parametrize(
    ("gfn", "found"),
    [(0, None), (3, None), (4, 1), (7, 1), (8, None), (15, None), (16, 2), (63, 2)],
)
def test_a_gfn_is_looked_up_in_the_slot_that_covers_it(
    machine: Machine, gfn: int, found: int | None
) -> None:
    machine.add_slot(4, 4, slot=1)
    machine.add_slot(16, 48, slot=2)
    with srcu_section(machine.kvm.srcu):
        slot = machine.vm.memslots.gfn_to_memslot(0, gfn)
    assert (slot.id if slot else None) == found


def test_looking_at_memslots_needs_srcu_or_slots_lock(machine: Machine) -> None:
    memslots = machine.vm.memslots
    with machine.kvm.slots_lock:
        memslots.gfn_to_memslot(0, 1)
    with srcu_section(machine.kvm.srcu):
        memslots.active(0)
    machine.expect()
    memslots.gfn_to_memslot(0, 1)
    machine.expect("O3 suspicious-srcu-usage")


@pytest.mark.parametrize("change", ["delete", "move", "flags"])
def test_a_slot_object_that_outlived_its_slot_reports_its_use(
    machine: Machine, change: str
) -> None:
    region = machine.add_slot(0, 8)
    (old,) = slots(machine)
    if change == "delete":
        machine.delete_slot()
    elif change == "move":
        machine.move_slot(32)
    else:
        machine.vm.set_user_memory_region(MemoryRegion(0, 0, 8, region, KVM_MEM_LOG_DIRTY_PAGES))
    assert is_poisoned(old)
    machine.expect()
    assert old.base_gfn == 0
    machine.expect("O2 use-after-free")


def test_a_copy_differs_only_where_it_is_told_to(machine: Machine) -> None:
    slot = Memslot(5, 1, 16, 4, KVM_MEM_READONLY, machine.vm.host.mmap(4))
    slot.dirty_bitmap = machine.runtime.table(4)
    copy = slot.copy(flags=slot.flags | KVM_MEMSLOT_INVALID)
    assert (copy.id, copy.as_id, copy.base_gfn, copy.npages, copy.end_gfn) == (5, 1, 16, 4, 20)
    assert (copy.region, copy.dirty_bitmap) == (slot.region, slot.dirty_bitmap)
    assert (copy.host_writable, copy.invalid, slot.invalid) == (False, True, False)
    assert slot.copy(flags=0).host_writable
    assert copy.describe() == "memslot 5 (as1, gfns 0x10..0x13 INVALID)"
