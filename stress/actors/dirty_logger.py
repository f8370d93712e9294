"""The dirty logger: live migration's view of the fixed slot."""

from __future__ import annotations

from mmu.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES, MemoryRegion
from stress.actors.base import Actor, Stage


class DirtyLogger(Actor):
    """Logging on, a number of reads, logging off. What it reads is judged by the O8 oracle against the ground truth."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage, "dirty-logger")
        config = stage.scenario.actors.dirty_log
        self._dice = stage.dice(self.name)
        self._pause = config.pause_s
        self._reads = config.reads
        self._left = 0

    def step(self) -> None:
        """One ioctl."""
        if not self._left:
            self._left = self._reads + 1 if self._set_flags(KVM_MEM_LOG_DIRTY_PAGES) else 0
        elif self._left == 1:
            self._left = 0 if self._set_flags(0) else 1
        else:
            self._left -= 1
            self.read()
        self.stage.vm.kvm.runtime.sleep(self._dice.random() * self._pause)

    def read(self) -> None:
        """KVM_GET_DIRTY_LOG, and KVM_CLEAR_DIRTY_LOG where the log is cleared by hand."""
        vm = self.stage.vm
        pages = vm.get_dirty_log(0)
        if vm.kvm.config.manual_protect:
            vm.clear_dirty_log(0, pages)
        self.stage.counts["dirty_log_reads"].add(1)
        self.stage.counts["dirty_pages_logged"].add(len(pages))

    def _set_flags(self, flags: int) -> bool:
        place, region = self.stage.layout.fixed[0], self.stage.layout.fixed_regions[0]
        return self.stage.set_region(MemoryRegion(0, place.gfn, place.pages, region, flags, place.as_id))
