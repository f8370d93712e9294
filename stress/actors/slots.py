"""Updates of the memslots that come and go, by their numbers: what the memslot worker does, and a
script's setup."""

from __future__ import annotations

from collections.abc import Callable

from mmu.memory.host import tag_of
from mmu.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES, MemoryRegion
from stress.actors.base import Stage


class SlotUpdates:
    """KVM_SET_USER_MEMORY_REGION for churn slots. An update whose precondition does not hold does
    nothing."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.verbs: dict[str, Callable[..., object]] = {
            "create": self.create,
            "delete": self.delete,
            "move": self.move,
            "flags": self.flags,
        }

    def create(self, number: int) -> None:
        """Map fresh memory and give it to KVM; nothing if the slot is there."""
        vm, churn = self.stage.vm, self.stage.layout.churn[number]
        if churn.region.value is not None:
            return
        place = churn.place()
        region = self.stage.layout.mmap(place, churning=True)
        if not self.stage.set_region(
            MemoryRegion(churn.slot, place.gfn, place.pages, region, 0, place.as_id)
        ):
            vm.host.munmap(region)
            return
        churn.region.value = region
        churn.flags.value = 0

    def delete(self, number: int) -> None:
        """Delete the slot, then release its memory: from here on any use of it is a finding.
        Nothing if it is absent."""
        vm, churn = self.stage.vm, self.stage.layout.churn[number]
        region = churn.region.value
        if region is None or not self.stage.set_region(
            MemoryRegion(churn.slot, 0, 0, as_id=churn.place().as_id)
        ):
            return
        churn.region.value = None
        vm.host.munmap(region)

    def move(self, number: int) -> None:
        """Move the slot to its other home; nothing if it is absent."""
        vm, churn = self.stage.vm, self.stage.layout.churn[number]
        region = churn.region.value
        if region is None:
            return
        target = churn.homes[1 - churn.home.value]
        vm.host.begin_move(region, tag_of(target.as_id, target.gfn))
        if not self.stage.set_region(
            MemoryRegion(
                churn.slot, target.gfn, target.pages, region, churn.flags.value, target.as_id
            )
        ):
            vm.host.abort_move(region)
            return
        churn.home.value = 1 - churn.home.value
        vm.host.end_move(region)

    def flags(self, number: int) -> None:
        """Toggle KVM_MEM_LOG_DIRTY_PAGES: a swap and its SRCU wait without any zap. Nothing if the
        slot is absent."""
        churn = self.stage.layout.churn[number]
        region, place = churn.region.value, churn.place()
        if region is None:
            return
        flags = churn.flags.value ^ KVM_MEM_LOG_DIRTY_PAGES
        if self.stage.set_region(
            MemoryRegion(churn.slot, place.gfn, place.pages, region, flags, place.as_id)
        ):
            churn.flags.value = flags


def prepare_slots(stage: Stage) -> None:
    """The memslot updates of the script's setup, before anybody is there to see them half done."""
    updates = SlotUpdates(stage)
    for op in stage.script.slot_updates() if stage.script is not None else ():
        updates.verbs[op.name](*op.args)
