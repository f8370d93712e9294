"""Laws of memslots: any sequence of changes is answered as a dictionary would, keeps every
invariant, and leaves nothing."""

from __future__ import annotations

import errno
from typing import Any

from attrs import define, evolve, frozen
from hypothesis import given
from hypothesis import strategies as st

from mmu.errors import KvmError
from mmu.export.device import Dma
from mmu.export.policies import KEEP_VALID
from mmu.machine.vcpu import Exit
from mmu.memory.memslots import MemoryRegion
from tests.model import SMALL, Machine, machine_of, w

SPACES = (0, 1)


@frozen
class Slot:
    """What the VMM believes of a slot."""

    gfn: int
    npages: int

    def overlaps(self, other: Slot) -> bool:
        """Whether they share a gfn."""
        return self.gfn < other.gfn + other.npages and other.gfn < self.gfn + self.npages

    def fits(self) -> bool:
        """Whether the guest is large enough."""
        return self.gfn + self.npages <= SMALL.max_gfn + 1


@define
class Vmm:
    """The VMM: a dictionary of slots, and the machine that has to agree with it."""

    machine: Machine
    slots: dict[tuple[int, int], Slot]

    def covered(self, as_id: int, gfn: int) -> bool:
        """Whether some slot backs a gfn."""
        return any(
            space == as_id and slot.gfn <= gfn < slot.gfn + slot.npages
            for (space, _), slot in self.slots.items()
        )

    def answer(self, as_id: int, number: int, wanted: Slot) -> int:
        """The errno for a new or moved slot, 0 when it is granted."""
        if not wanted.fits():
            return errno.EINVAL
        others = [
            slot
            for (space, other), slot in self.slots.items()
            if space == as_id and other != number
        ]
        return errno.EEXIST if any(wanted.overlaps(other) for other in others) else 0

    def create(self, as_id: int, number: int, wanted: Slot) -> None:
        """Add a slot, or try to; adding an existing one with other memory is a change that is
        always refused."""
        key = as_id, number
        if key in self.slots:
            region = self.machine.vm.host.mmap(wanted.npages)
            assert (
                errno_of(
                    self.machine,
                    MemoryRegion(number, wanted.gfn, wanted.npages, region, as_id=as_id),
                )
                == errno.EINVAL
            )
            return
        expected = self.answer(as_id, number, wanted)
        if expected:
            region = self.machine.vm.host.mmap(wanted.npages)
            assert (
                errno_of(
                    self.machine,
                    MemoryRegion(number, wanted.gfn, wanted.npages, region, as_id=as_id),
                )
                == expected
            )
            return
        self.machine.add_slot(wanted.gfn, wanted.npages, slot=number, as_id=as_id)
        self.slots[key] = wanted

    def delete(self, as_id: int, number: int) -> None:
        """Remove a slot, or try to."""
        if (as_id, number) not in self.slots:
            assert errno_of(self.machine, MemoryRegion(number, 0, 0, as_id=as_id)) == errno.EINVAL
            return
        self.machine.delete_slot(number, as_id)
        del self.slots[as_id, number]

    def move(self, as_id: int, number: int, gfn: int) -> None:
        """Move a slot, or try to."""
        key = as_id, number
        if key not in self.slots:
            return
        wanted = evolve(self.slots[key], gfn=gfn)
        expected = self.answer(as_id, number, wanted)
        if expected:
            region = self.machine.regions[key]
            assert (
                errno_of(
                    self.machine, MemoryRegion(number, gfn, wanted.npages, region, as_id=as_id)
                )
                == expected
            )
            return
        self.machine.move_slot(gfn, slot=number, as_id=as_id)
        self.slots[key] = wanted


def errno_of(machine: Machine, region: MemoryRegion) -> int:
    """How a call that must be refused is refused."""
    try:
        machine.vm.set_user_memory_region(region)
    except KvmError as refusal:
        return refusal.errno
    return 0


gfns = st.integers(0, SMALL.max_gfn)
slots = st.builds(Slot, gfns, st.integers(1, 20))
numbers = st.integers(0, 3)
changes = st.one_of(
    st.tuples(st.just("create"), st.sampled_from(SPACES), numbers, slots),
    st.tuples(st.just("delete"), st.sampled_from(SPACES), numbers),
    st.tuples(st.just("move"), st.sampled_from(SPACES), numbers, gfns),
)
accesses = st.tuples(st.sampled_from(["read", "write"]), gfns)
steps = st.lists(st.one_of(changes, accesses.map(lambda access: ("access", *access))), max_size=24)


def change(vmm: Vmm, step: tuple[Any, ...]) -> None:
    """Make one memslot change."""
    getattr(vmm, step[0])(*step[1:])


@given(steps)
def test_slots_behave_like_a_dictionary_and_every_invariant_holds_throughout(
    sequence: list[tuple[Any, ...]],
) -> None:
    with machine_of(frames=2048) as machine:
        vmm = Vmm(machine, {})
        vcpu = machine.vm.create_vcpu()
        for step in sequence:
            if step[0] == "access":
                _, how, gfn = step
                wanted = Exit.INTR if vmm.covered(0, gfn) else Exit.MMIO
                assert machine.run(vcpu, w(gfn) if how == "write" else gfn) is wanted
            else:
                change(vmm, step)
            machine.assert_sound()
        found = {
            (as_id, slot.id): Slot(slot.base_gfn, slot.npages)
            for as_id in SPACES
            for slot in machine.vm.memslots.peek(as_id).index.value[1]
        }
        assert found == vmm.slots


@given(steps, st.integers(0, 10), st.integers(0, 30))
def test_a_device_on_the_exported_root_sees_what_the_slots_say_at_any_time(
    sequence: list[tuple[Any, ...]], export_at: int, close_at: int
) -> None:
    """Export and un-export come anywhere in the sequence; the device is served exactly what has a
    slot."""
    with machine_of(variants=[KEEP_VALID], frames=2048) as machine:
        vmm = Vmm(machine, {})
        vcpu = machine.vm.create_vcpu()
        bound: list[Any] = []
        for number, step in enumerate(sequence):
            if number == export_at:
                fd = machine.export()
                bound.append(machine.attach(fd))
                fd.put()
            if number == export_at + close_at and bound:
                bound.pop()[1].destroy()
            if step[0] != "access":
                change(vmm, step)
            elif not bound:
                machine.run(vcpu, step[2])
            else:
                ((device, hwpt),) = bound
                _, how, gfn = step
                outcome = device.transact(gfn, how == "write")
                if outcome is None:
                    assert hwpt.io_fault(gfn, how == "write") is vmm.covered(0, gfn)
                    outcome = device.transact(gfn, how == "write")
                assert outcome is (Dma.DONE if vmm.covered(0, gfn) else None)
            machine.assert_sound()


@given(st.lists(changes, max_size=16))
def test_the_generation_counts_the_swaps(sequence: list[tuple[Any, ...]]) -> None:
    """CREATE swaps once, DELETE and MOVE twice, a refused or empty change not at all."""
    with machine_of(frames=512) as machine:
        vmm = Vmm(machine, {})
        for step in sequence:
            as_id = step[1]
            before, slots_before = machine.vm.memslots.peek(as_id).generation.value, dict(vmm.slots)
            change(vmm, step)
            advanced = machine.vm.memslots.peek(as_id).generation.value - before
            changed = vmm.slots != slots_before
            assert advanced == (0 if not changed else 2 if step[0] == "create" else 4)
