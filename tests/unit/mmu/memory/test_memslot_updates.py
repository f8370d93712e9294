"""Memslot updates that fail half-way, meet invalidations, or carry a dirty bitmap (reference
2.9)."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from mmu.errors import KvmError
from mmu.memory.memslots import (
    GEN_UPDATE_IN_PROGRESS,
    KVM_MEM_LOG_DIRTY_PAGES,
    Change,
    MemoryRegion,
)
from mmu.tdp.fault import RetPf
from tests.conftest import blocked, finish, srcu_section, together
from tests.model import SMALL, Machine, w
from tests.unit.conftest import MakeMachine


class Failing:
    """Fault injection: the steps named in `steps` fail."""

    def __init__(self) -> None:
        self.steps: set[str] = set()

    def __call__(self, step: str) -> bool:
        """should_fail()."""
        return step in self.steps


@pytest.fixture
def failing() -> Failing:
    """What fails; nothing at first."""
    return Failing()


@pytest.fixture
def fallible(make_machine: MakeMachine, failing: Failing) -> Machine:
    """A machine with a slot at gfns 0..7, of which a guest has written gfn 1."""
    machine = make_machine(fail_function=failing)
    machine.add_slot(0, 8)
    machine.run(machine.vcpu(), w(1))
    return machine


def generation(machine: Machine) -> int:
    """The generation of the active set of address space 0."""
    return machine.vm.memslots.peek(0).generation.value


# Failure.


CHANGES: dict[str, Callable[[Machine], object]] = {
    "create": lambda machine: machine.add_slot(16, 4, slot=1),
    "delete": lambda machine: machine.delete_slot(),
    "move": lambda machine: machine.move_slot(32),
    "flags": lambda machine: machine.log_dirty_pages(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_update_that_cannot_be_prepared_leaves_everything_as_it_was(
    fallible: Machine, failing: Failing, change: str
) -> None:
    before = [
        (slot.id, slot.base_gfn, slot.flags) for slot in fallible.vm.memslots.peek(0).index.value[1]
    ]
    failing.steps.add("prepare_memory_region")
    with pytest.raises(KvmError) as refusal:
        CHANGES[change](fallible)
    assert refusal.value.errno == errno.ENOMEM
    for copy in fallible.vm.memslots._sets[0]:
        assert [(slot.id, slot.base_gfn, slot.flags) for slot in copy.index.value[1]] == before
    assert not fallible.kvm.slots_lock.held()
    assert not fallible.kvm.slots_arch_lock.held()
    assert not generation(fallible) & GEN_UPDATE_IN_PROGRESS
    failing.steps.clear()
    fallible.run(fallible.vm.vcpus()[0], 1, w(2))
    fallible.assert_sound()


def test_a_slot_that_comes_back_does_so_by_a_swap_of_its_own(
    fallible: Machine, failing: Failing
) -> None:
    """Nobody may go on with the INVALID copy: its readers are waited for."""
    failing.steps.add("prepare_memory_region")
    before, swaps = generation(fallible), list[bool]()
    fallible.on(point=lambda name: swaps.append(fallible.slot().invalid) if name == "P13" else None)
    with pytest.raises(KvmError):
        fallible.delete_slot()
    assert list(dict.fromkeys(swaps)) == [True, False]
    assert generation(fallible) == before + 4


def test_what_a_refused_delete_has_zapped_is_mapped_again(
    fallible: Machine, failing: Failing
) -> None:
    failing.steps.add("prepare_memory_region")
    with pytest.raises(KvmError):
        fallible.delete_slot()
    vcpu = fallible.vm.vcpus()[0]
    vcpu.service_requests()
    assert fallible.leaves(fallible.root()) == {}
    assert fallible.fault(vcpu, 1) is RetPf.FIXED


def test_while_a_refused_delete_is_undone_faults_wait(fallible: Machine, failing: Failing) -> None:
    failing.steps.add("prepare_memory_region")
    results: list[RetPf] = []
    vcpu = fallible.vm.vcpus()[0]
    fallible.at(
        "P14", lambda: together(fallible.runtime, lambda: results.append(fallible.fault(vcpu, 1)))
    )
    with pytest.raises(KvmError):
        fallible.delete_slot()
    assert results == [RetPf.RETRY]


# Invalidations.


def test_a_swap_waits_for_active_invalidations_and_publishes_nothing_before(
    machine: Machine,
) -> None:
    region = machine.add_slot(0, 8)
    other = machine.vm.host.mmap(4)
    notifier = machine.vm.notifier
    notifier.invalidate_range_start(region, 1, 2)
    notifier.invalidate_range_start(other, 0, 4)
    worker = blocked(
        machine.runtime, machine.log_dirty_pages, lambda task: "invalidations" in task.waiting_for
    )
    assert machine.slot().flags == 0
    notifier.invalidate_range_end(other, 0, 4)
    assert not machine.runtime.join(worker, 0), "one is still active"
    notifier.invalidate_range_end(region, 1, 2)
    finish(machine.runtime, worker)
    assert machine.slot().flags == KVM_MEM_LOG_DIRTY_PAGES
    machine.assert_sound()


def test_no_invalidation_begins_between_the_look_and_the_publication(machine: Machine) -> None:
    """Otherwise it would start on the old slots and end on the new ones."""
    region = machine.add_slot(0, 8)
    starters: list[object] = []
    seen: list[int] = []

    def start() -> None:
        machine.vm.notifier.invalidate_range_start(region, 1, 2)

    def publish() -> None:
        task = blocked(
            machine.runtime, start, lambda task: task.waiting_for == "mn_invalidate_lock"
        )
        seen.append(machine.kvm.mn_active_invalidate_count.value)
        starters.append(task)

    machine.vm.memslots.wait_for_invalidations(publish)
    assert seen == [0]
    finish(machine.runtime, *starters)  # type: ignore[arg-type]
    machine.vm.notifier.invalidate_range_end(region, 1, 2)
    machine.assert_sound()


def test_waiting_for_invalidations_is_sleeping(machine: Machine) -> None:
    region = machine.add_slot(0, 8)
    machine.vm.notifier.invalidate_range_start(region, 0, 1)

    def wait_in_atomic() -> None:
        machine.mmu_lock.read_lock()
        machine.vm.memslots.wait_for_invalidations(lambda: None)
        machine.mmu_lock.read_unlock()

    waiter = blocked(
        machine.runtime, wait_in_atomic, lambda task: "invalidations" in task.waiting_for
    )
    assert "O5 sleep-in-atomic" in machine.news()
    machine.kvm.mn_active_invalidate_count.fetch_add(-1)
    finish(machine.runtime, waiter)
    machine.kvm.mn_active_invalidate_count.fetch_add(1)
    machine.vm.notifier.invalidate_range_end(region, 0, 1)
    machine.news()


# The architecture's part.


def test_the_architecture_hears_of_a_generation_before_it_is_stored(machine: Machine) -> None:
    """152482580a1b: what could match the new generation has to go first."""
    told: list[tuple[int, int]] = []
    plain = machine.vm.memslots.listener.memslots_updated

    def updated(new: int) -> None:
        told.append((new, generation(machine)))
        plain(new)

    machine.vm.memslots.listener.memslots_updated = updated  # type: ignore[method-assign]
    machine.add_slot(0, 8)
    machine.delete_slot()
    assert told == [
        (2, 0 | GEN_UPDATE_IN_PROGRESS),
        (4, 2 | GEN_UPDATE_IN_PROGRESS),
        (6, 4 | GEN_UPDATE_IN_PROGRESS),
    ]


def test_the_architecture_commits_when_both_copies_are_alike(machine: Machine) -> None:
    seen: list[list[int]] = []
    plain = machine.vm.memslots.listener.commit_memory_region

    def commit(*args: object) -> None:
        seen.append(
            [slot.flags for copy in machine.vm.memslots._sets[0] for slot in copy.index.value[1]]
        )
        assert machine.kvm.slots_lock.held()
        assert not machine.kvm.slots_arch_lock.held()
        plain(*args)  # type: ignore[arg-type]

    machine.vm.memslots.listener.commit_memory_region = commit  # type: ignore[method-assign]
    machine.add_slot(0, 8)
    machine.log_dirty_pages()
    assert seen == [[0, 0], [KVM_MEM_LOG_DIRTY_PAGES] * 2]


def test_slots_are_found_by_their_memory(machine: Machine) -> None:
    one, other = machine.add_slot(0, 8, slot=1), machine.add_slot(8, 8, slot=2, as_id=1)
    memslots = machine.vm.memslots
    with srcu_section(machine.kvm.srcu):
        assert [slot.id for slot in memslots.in_hva_range(one.hva, one.hva + 8)] == [1]
        found = memslots.in_hva_range(other.hva + 7, other.hva + 9)
        assert [(slot.id, slot.as_id) for slot in found] == [(2, 1)]
        assert memslots.in_hva_range(other.hva + 8, other.hva + 9) == []


# Slots.


def test_a_slot_translates_between_guest_and_host(machine: Machine) -> None:
    region = machine.add_slot(8, 8)
    slot = machine.slot()
    assert [slot.hva(gfn) - region.hva for gfn in (8, 15)] == [0, 7]
    assert [slot.hva(gfn) for gfn in (8, 15)] == [region.hva, region.hva + 7]


@pytest.mark.parametrize(
    ("gfn", "level", "allowed"),
    [
        (2, 2, False),
        (4, 2, True),
        (7, 2, True),
        (8, 2, True),
        (16, 2, False),
        (4, 1, True),
        (4, 3, False),
    ],
)
def test_a_leaf_lies_inside_its_slot(huge: Machine, gfn: int, level: int, allowed: bool) -> None:
    huge.add_slot(2, 16, max_level=2)
    assert huge.slot().allows(gfn, level, SMALL) == allowed


@pytest.mark.parametrize(
    ("offset", "two", "three"),
    [(0, True, True), (4, True, False), (1, False, False), (2, False, False)],
)
def test_guest_and_host_addresses_have_the_same_offset_in_a_leaf(
    huge: Machine, offset: int, two: bool, three: bool
) -> None:
    region = huge.vm.host.mmap(32, max_level=3, offset=offset)
    huge.vm.set_user_memory_region(MemoryRegion(0, 0, 32, region))
    slot = huge.slot()
    assert (slot.allows(5, 2, SMALL), slot.allows(5, 3, SMALL)) == (two, three)


# The dirty bitmap.


def test_a_new_slot_that_logs_has_an_empty_bitmap(machine: Machine) -> None:
    machine.add_slot(8, 4, flags=KVM_MEM_LOG_DIRTY_PAGES)
    assert list(machine.slot().dirty_bitmap or ()) == [0, 0, 0, 0]
    machine.slot().mark_dirty(10)
    assert list(machine.slot().dirty_bitmap or ()) == [0, 0, 1, 0]


def test_a_slot_that_does_not_log_marks_nothing(machine: Machine) -> None:
    machine.add_slot(8, 4)
    machine.slot().mark_dirty(10)
    assert machine.slot().dirty_bitmap is None


def test_the_bitmap_is_the_same_one_before_during_and_after_a_move(machine: Machine) -> None:
    machine.add_slot(8, 4, flags=KVM_MEM_LOG_DIRTY_PAGES)
    bitmap, seen = machine.slot().dirty_bitmap, list[bool]()
    machine.at("P14", lambda: seen.append(machine.slot().dirty_bitmap is bitmap))
    region = machine.regions[0, 0]
    move = machine.vm.host.begin_move(region, 40)
    assert (
        machine.vm.set_user_memory_region(MemoryRegion(0, 40, 4, region, KVM_MEM_LOG_DIRTY_PAGES))
        is Change.MOVE
    )
    machine.vm.host.end_move(move)
    assert seen == [True]
    assert machine.slot().dirty_bitmap is bitmap


def test_a_log_that_was_switched_off_and_on_begins_anew(machine: Machine) -> None:
    machine.add_slot(8, 4, flags=KVM_MEM_LOG_DIRTY_PAGES)
    machine.slot().mark_dirty(10)
    machine.set_flags(0)
    machine.log_dirty_pages()
    assert list(machine.slot().dirty_bitmap or ()) == [0, 0, 0, 0]
