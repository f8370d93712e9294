"""Where guest memory lies: which gfns the actors use, and which memslots come and go there."""

from __future__ import annotations

import random

from attrs import frozen

from mmu.machine.vm import VirtualMachine
from mmu.memory.host import Region, tag_of
from mmu.memory.memslots import MemoryRegion
from mmu.runtime import Cell, Queue
from stress.scenario.types import Memory, VmSettings


@frozen
class FrameRange:
    """A run of guest frames in an address space."""

    as_id: int
    gfn: int
    pages: int


class ChurnSlot:
    """A memslot that the memslot worker creates, moves and deletes. `homes` are the places it moves
    between."""

    def __init__(self, vm: VirtualMachine, slot: int, homes: tuple[FrameRange, FrameRange]) -> None:
        self.slot = slot
        self.homes = homes
        self.home: Cell[int] = vm.kvm.runtime.cell(f"churn[{slot}].home", 0)
        self.region: Cell[Region | None] = vm.kvm.runtime.cell(f"churn[{slot}].region", None)
        self.flags: Cell[int] = vm.kvm.runtime.cell(f"churn[{slot}].flags", 0)

    def place(self) -> FrameRange:
        """Where the slot is, or would be created."""
        return self.homes[self.home.value]


class Layout:
    """The plan of guest memory for one scenario; everything follows from the scenario, nothing from
    chance."""

    def __init__(self, vm: VirtualMachine, config: VmSettings, memory: Memory) -> None:
        self.vm = vm
        stride = memory.stride(config.entries, config.levels)
        self.fixed = [FrameRange(0, 0, memory.fixed_pages)]
        if memory.smm_pages:
            self.fixed.append(FrameRange(1, 0, memory.smm_pages))
        self.churn: list[ChurnSlot] = []
        for number in range(memory.churn_slots):
            first = stride * (1 + 2 * number)
            homes = (
                FrameRange(0, first, memory.churn_pages),
                FrameRange(0, first + stride, memory.churn_pages),
            )
            self.churn.append(ChurnSlot(vm, 10 + number, homes))
        if memory.smm_pages and memory.smm_churn_pages:
            homes = (
                FrameRange(1, stride, memory.smm_churn_pages),
                FrameRange(1, 2 * stride, memory.smm_churn_pages),
            )
            self.churn.append(ChurnSlot(vm, 10, homes))
        self._last = vm.kvm.geometry.max_gfn
        self._memory = memory
        self.fixed_regions: list[Region] = []
        self.userfaults: Queue[tuple[Region, int]] = vm.kvm.runtime.queue("userfaults")
        """Missing pages that somebody waits for."""

    def create_fixed(self) -> None:
        """Give KVM the slots that stay."""
        for number, place in enumerate(self.fixed):
            region = self.mmap(place)
            self.vm.set_user_memory_region(
                MemoryRegion(number, place.gfn, place.pages, region, 0, place.as_id)
            )
            self.fixed_regions.append(region)

    def mmap(self, place: FrameRange, *, churning: bool = False) -> Region:
        """Fresh host memory for a slot at `place`, which is its owner from now on."""
        memory = self._memory
        userfaults = self.userfaults if churning and memory.userfaults else None
        region = self.vm.host.mmap(
            place.pages,
            max_level=memory.host_level,
            offset=memory.offset_pages,
            userfaults=userfaults,
        )
        self.vm.host.assign(region, tag_of(place.as_id, place.gfn))
        return region

    def backing(self) -> list[Region | None]:
        """The memory of every region by its number: the fixed ones, then the churning ones, None
        where there is no slot now."""
        return [*self.fixed_regions, *(slot.region.value for slot in self.churn)]

    def regions(self) -> list[Region]:
        """The memory that backs slots now; any of the churning ones may be gone in a moment."""
        return [region for region in self.backing() if region is not None]

    def somewhere_unmapped(self, dice: random.Random) -> int:
        """A gfn that no slot ever covers."""
        return self._last - dice.randrange(4)
