"""Updates of the memslots that come and go, by their numbers: what the memslot worker does, and a
script's setup."""

from __future__ import annotations

from collections.abc import Callable

from mmu.memory.host import Region, tag_of
from mmu.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES, MemoryRegion
from stress.actors.base import Stage
from stress.actors.layout import ChurnSlot, FrameRange


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
            "get-log": self.read_log,
        }

    def create(self, number: int) -> None:
        """Give memory to KVM; nothing if the slot is there."""
        layout = self.stage.layout
        churn = layout.churn[number]
        if churn.backing.value is not None:
            return
        backing = layout.back(churn)
        if not self._set(churn, churn.place(), backing[0], 0):
            layout.release(churn, backing)
            return
        churn.backing.value = backing
        churn.flags.value = 0

    def delete(self, number: int) -> None:
        """Delete the slot, then release its memory: from here on any use of it is a finding.
        Nothing if it is absent."""
        churn = self.stage.layout.churn[number]
        backing = churn.backing.value
        if backing is None or not self.stage.set_region(
            MemoryRegion(churn.slot, 0, 0, as_id=churn.place().as_id)
        ):
            return
        churn.backing.value = None
        self.stage.layout.release(churn, backing)

    def move(self, number: int) -> None:
        """Move the slot to its other home; nothing if it is absent."""
        host, churn = self.stage.vm.host, self.stage.layout.churn[number]
        backing = churn.backing.value
        if backing is None:
            return
        region, home = backing
        target = churn.homes[1 - churn.home.value]
        move = host.begin_move(region, tag_of(target.as_id, target.gfn), home)
        if not self._set(churn, target, region, churn.flags.value):
            host.abort_move(move)
            return
        churn.home.value = 1 - churn.home.value
        churn.backing.value = region, host.end_move(move)

    def flags(self, number: int) -> None:
        """Toggle KVM_MEM_LOG_DIRTY_PAGES: a swap and its SRCU wait without any zap. Nothing if the
        slot is absent."""
        churn = self.stage.layout.churn[number]
        backing = churn.backing.value
        if backing is None:
            return
        flags = churn.flags.value ^ KVM_MEM_LOG_DIRTY_PAGES
        if self._set(churn, churn.place(), backing[0], flags):
            churn.flags.value = flags

    def read_log(self, number: int) -> None:
        """KVM_GET_DIRTY_LOG, and KVM_CLEAR_DIRTY_LOG where the log is cleared by hand; nothing if
        the slot is absent or does not log."""
        churn = self.stage.layout.churn[number]
        if churn.backing.value is not None and churn.flags.value & KVM_MEM_LOG_DIRTY_PAGES:
            read_log(self.stage, churn.slot, churn.place().as_id)

    def _set(self, churn: ChurnSlot, place: FrameRange, region: Region, flags: int) -> bool:
        first = churn.first_page or 0
        return self.stage.set_region(
            MemoryRegion(churn.slot, place.gfn, place.pages, region, flags, place.as_id, first)
        )


def read_log(stage: Stage, slot: int, as_id: int = 0) -> None:
    """Read the dirty log of a slot that logs, and clear it where that is done by hand."""
    vm = stage.vm
    pages = vm.get_dirty_log(slot, as_id)
    if vm.kvm.config.manual_protect:
        vm.clear_dirty_log(slot, pages, as_id)
    stage.counts["dirty_log_reads"].add(1)
    stage.counts["dirty_pages_logged"].add(len(pages))


def prepare_slots(stage: Stage) -> None:
    """The memslot updates of the script's setup, before anybody is there to see them half done."""
    updates = SlotUpdates(stage)
    for op in stage.script.slot_updates() if stage.script is not None else ():
        updates.verbs[op.name](*op.args)
