"""Where guest memory lies: which gfns the actors use, and which memslots come and go there."""

from __future__ import annotations

import random

from attrs import frozen

from mmu.machine.vm import VirtualMachine
from mmu.memory.host import Home, Region, tag_of
from mmu.memory.memslots import KVM_MEM_READONLY, MemoryRegion
from mmu.runtime import Cell, Queue
from stress.scenario.types import Memory, VmSettings


@frozen
class FrameRange:
    """A run of guest frames in an address space."""

    as_id: int
    gfn: int
    pages: int


@frozen
class FixedSlot(FrameRange):
    """A memslot that stays, with the pages from `first_page` on of fixed region `region`."""

    slot: int
    region: int
    first_page: int = 0
    flags: int = 0


class ChurnSlot:
    """A memslot that the memslot worker creates, moves and deletes. `homes` are the places it moves
    between; `first_page` is where its memory begins in the mapping that it shares with others, None
    if it has its own mapping."""

    def __init__(
        self,
        vm: VirtualMachine,
        slot: int,
        homes: tuple[FrameRange, FrameRange],
        first_page: int | None = None,
    ) -> None:
        self.slot = slot
        self.homes = homes
        self.first_page = first_page
        self.home: Cell[int] = vm.kvm.runtime.cell(f"churn[{slot}].home", 0)
        self.backing: Cell[Backing | None] = vm.kvm.runtime.cell(f"churn[{slot}].backing", None)
        self.flags: Cell[int] = vm.kvm.runtime.cell(f"churn[{slot}].flags", 0)

    def place(self) -> FrameRange:
        """Where the slot is, or would be created."""
        return self.homes[self.home.value]


Backing = tuple[Region, Home]
"""The memory behind an existing slot, and its home there."""


class Layout:
    """The plan of guest memory for one scenario; everything follows from the scenario, nothing from
    chance."""

    def __init__(self, vm: VirtualMachine, config: VmSettings, memory: Memory) -> None:
        self.vm = vm
        self._memory = memory
        self.fixed = _fixed_slots(memory)
        self.churn = _churn_slots(vm, memory, memory.stride(config.entries, config.levels))
        self._last = vm.kvm.geometry.max_gfn
        self.fixed_regions: list[Region] = []
        self.shared: list[Region] = []
        """The mapping that slots that come and go share, if they do."""
        self.userfaults: Queue[tuple[Region, int]] = vm.kvm.runtime.queue("userfaults")
        """Missing pages that somebody waits for."""

    def create_fixed(self) -> None:
        """Give KVM the slots that stay."""
        self.fixed_regions = [self._mmap(pages) for pages in self._memory.fixed_regions()]
        if self._memory.churn_shared:
            self.shared = [self._mmap(self._memory.churn_regions()[0], churning=True)]
        for slot in self.fixed:
            region = self.fixed_regions[slot.region]
            writable = not slot.flags & KVM_MEM_READONLY
            self.assign(region, slot, slot.first_page, writable=writable)
            self.vm.set_user_memory_region(fixed_region(slot, region, slot.flags))

    def back(self, churn: ChurnSlot) -> Backing:
        """Memory for a slot that is about to be created: its part of what it shares, or a fresh
        mapping."""
        place = churn.place()
        if churn.first_page is None:
            region = self._mmap(place.pages, churning=True)
            return region, self.assign(region, place, 0)
        (region,) = self.shared
        return region, self.assign(region, place, churn.first_page)

    def release(self, churn: ChurnSlot, backing: Backing) -> None:
        """Release the memory of a deleted slot. Pages of a shared mapping are discarded with a
        notification, although no slot covers them any more."""
        (region, home), vm = backing, self.vm
        if churn.first_page is None:
            vm.host.munmap(region)
            return
        vm.host.withdraw(region, home)
        first, last = home.first, home.first + home.pages
        vm.notifier.invalidate_range_start(region, first, last)
        vm.host.discard(region, first, last)
        vm.notifier.invalidate_range_end(region, first, last)

    def _mmap(self, pages: int, *, churning: bool = False) -> Region:
        memory = self._memory
        return self.vm.host.mmap(
            pages,
            max_level=memory.host_level,
            offset=memory.offset_pages,
            userfaults=self.userfaults if churning and memory.userfaults else None,
        )

    def assign(
        self, region: Region, place: FrameRange, first_page: int, *, writable: bool = True
    ) -> Home:
        """The pages of a region from `first_page` on belong to `place` from now on."""
        tag = tag_of(place.as_id, place.gfn)
        return self.vm.host.assign(region, tag, first_page, place.pages, writable=writable)

    def backing(self) -> list[Region | None]:
        """The memory of every region by its number: the fixed ones, then the churning ones, None
        where there is no slot now."""
        own = [slot.backing.value for slot in self.churn if slot.first_page is None]
        return [*self.fixed_regions, *self.shared, *(held and held[0] for held in own)]

    def regions(self) -> list[Region]:
        """The memory that backs slots now; any of the churning ones may be gone in a moment."""
        return [region for region in self.backing() if region is not None]

    def somewhere_unmapped(self, dice: random.Random) -> int:
        """A gfn that no slot ever covers."""
        return self._last - dice.randrange(4)


def fixed_region(slot: FixedSlot, region: Region, flags: int) -> MemoryRegion:
    """The call that creates a fixed slot, or changes its flags."""
    return MemoryRegion(slot.slot, slot.gfn, slot.pages, region, flags, slot.as_id, slot.first_page)


def _fixed_slots(memory: Memory) -> list[FixedSlot]:
    """The slots that stay: the normal ones, that of SMM, the read-only one."""
    slots: list[FixedSlot] = []
    first = 0
    for number, pages in enumerate(memory.fixed_parts()):
        slots.append(FixedSlot(0, first + memory.fixed_gap * number, pages, number, 0, first))
        first += pages
    end = slots[-1].gfn + slots[-1].pages
    if memory.smm_pages:
        slots.append(FixedSlot(1, 0, memory.smm_pages, 1, 0 if memory.smm_alias else 1))
    if memory.readonly_pages:
        region = len(memory.fixed_regions()) - 1
        pages, number = memory.readonly_pages, memory.fixed_slots
        slots.append(FixedSlot(0, end, pages, number, region, flags=KVM_MEM_READONLY))
    return slots


def _churn_slots(vm: VirtualMachine, memory: Memory, stride: int) -> list[ChurnSlot]:
    """The slots that come and go: the normal ones, and that of SMM."""
    slots: list[ChurnSlot] = []
    for number in range(memory.churn_slots):
        first = stride * (1 + 2 * number)
        homes = (
            FrameRange(0, first, memory.churn_pages),
            FrameRange(0, first + stride, memory.churn_pages),
        )
        part = number * memory.churn_pages if memory.churn_shared else None
        slots.append(ChurnSlot(vm, 10 + number, homes, part))
    if memory.smm_churns():
        homes = (
            FrameRange(1, stride, memory.smm_churn_pages),
            FrameRange(1, 2 * stride, memory.smm_churn_pages),
        )
        slots.append(ChurnSlot(vm, 10, homes))
    return slots
