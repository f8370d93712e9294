"""The memslot worker: creates, moves and deletes memslots, and releases the memory behind a deleted one at once."""

from __future__ import annotations

from mmu.memory.host import tag_of
from mmu.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES, MemoryRegion
from stress.actors.base import Actor, Stage
from stress.actors.layout import ChurnSlot


class MemslotWorker(Actor):
    """One user-space thread that reconfigures guest memory while everybody uses it."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage, "memslot-worker")
        self._dice = stage.dice(self.name)
        config = stage.scenario.actors.memslot_worker
        self._pause = config.pause_s
        self._weights: list[float] = [config.delete_weight, config.move_weight, config.flags_weight]
        self._operations = [self.delete, self.move, self.flags]

    def step(self) -> None:
        """One operation on one slot: create it if it is absent, else delete, move or change it."""
        churn = self._dice.choice(self.stage.layout.churn)
        if churn.region.value is None:
            self.create(churn)
        else:
            self._dice.choices(self._operations, self._weights)[0](churn)
        if self._pause:
            self.stage.vm.kvm.runtime.sleep(self._dice.random() * self._pause)

    def create(self, churn: ChurnSlot) -> None:
        """Map fresh memory and give it to KVM."""
        vm, place = self.stage.vm, churn.place()
        region = self.stage.layout.mmap(place, churning=True)
        if not self.stage.set_region(MemoryRegion(churn.slot, place.gfn, place.pages, region, 0, place.as_id)):
            vm.host.munmap(region)
            return
        churn.region.value = region
        churn.flags.value = 0

    def delete(self, churn: ChurnSlot) -> None:
        """Delete the slot, then release its memory: from here on any use of it is a finding."""
        vm, region = self.stage.vm, churn.region.value
        assert region is not None
        if not self.stage.set_region(MemoryRegion(churn.slot, 0, 0, as_id=churn.place().as_id)):
            return
        churn.region.value = None
        vm.host.munmap(region)

    def move(self, churn: ChurnSlot) -> None:
        """Move the slot to its other home."""
        vm, region = self.stage.vm, churn.region.value
        assert region is not None
        target = churn.homes[1 - churn.home.value]
        vm.host.begin_move(region, tag_of(target.as_id, target.gfn))
        if not self.stage.set_region(MemoryRegion(churn.slot, target.gfn, target.pages, region, churn.flags.value, target.as_id)):
            vm.host.abort_move(region)
            return
        churn.home.value = 1 - churn.home.value
        vm.host.end_move(region)

    def flags(self, churn: ChurnSlot) -> None:
        """Toggle KVM_MEM_LOG_DIRTY_PAGES: a swap and its SRCU wait without any zap."""
        region, place = churn.region.value, churn.place()
        assert region is not None
        flags = churn.flags.value ^ KVM_MEM_LOG_DIRTY_PAGES
        if self.stage.set_region(MemoryRegion(churn.slot, place.gfn, place.pages, region, flags, place.as_id)):
            churn.flags.value = flags
