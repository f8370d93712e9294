"""The host's memory management: takes pages away and changes their size while guests and devices use them."""

from __future__ import annotations

from collections.abc import Callable

from mmu.memory.host import Region
from stress.actors.base import Actor, Stage


class HostActor(Actor):
    """One thread of kswapd, khugepaged and compaction: every change happens between range_start and range_end."""

    def __init__(self, stage: Stage, number: int) -> None:
        super().__init__(stage, f"host{number}")
        config = stage.scenario.actors.host
        self._dice = stage.dice(self.name)
        self._pause = config.pause_s
        self._longest = config.range_pages
        self._operations = [self.discard, self.migrate, self.split, self.collapse, self.age]
        self._weights: list[float] = [
            config.discard_weight,
            config.migrate_weight,
            config.split_weight,
            config.collapse_weight,
            config.age_weight,
        ]

    def step(self) -> None:
        """One operation on one range of some memory that the VM has."""
        regions = self.stage.layout.regions()
        if regions:
            region = self._dice.choice(regions)
            first = self._dice.randrange(region.pages)
            last = min(region.pages, first + 1 + self._dice.randrange(self._longest))
            self._dice.choices(self._operations, self._weights)[0](region, first, last)
        if self._pause:
            self.stage.vm.kvm.runtime.sleep(self._dice.random() * self._pause)

    def discard(self, region: Region, first: int, last: int) -> None:
        """Reclaim: the frames are free as soon as range_start has returned."""
        self._change("host_pages_discarded", self.stage.vm.host.discard, region, *self._whole_pages(region, first, last))

    def migrate(self, region: Region, first: int, last: int) -> None:
        """Compaction: the same contents in other frames."""
        self._change("host_pages_migrated", self.stage.vm.host.migrate, region, *self._whole_pages(region, first, last))

    def split(self, region: Region, first: int, last: int) -> None:
        """The host's huge page becomes small ones; half the time they move at once."""
        host = self.stage.vm.host
        self._change("host_splits", host.split, region, *self._whole_pages(region, first, last))
        if self._dice.random() < 0.5:
            self.migrate(region, first, first + 1)

    def collapse(self, region: Region, first: int, last: int) -> None:  # noqa: ARG002 - one huge page
        """khugepaged: small pages become a huge one."""
        if region.max_level > 1:
            host = self.stage.vm.host
            self._change("host_collapses", lambda region, start, _: host.collapse(region, start, 2), region, *self._block(region, first, 2))

    def _change(self, counter: str, operation: Callable[[Region, int, int], int], region: Region, first: int, last: int) -> None:
        """Announce it, do it, and let faults see what is there now."""
        notifier = self.stage.vm.notifier
        notifier.invalidate_range_start(region, first, last)
        self.stage.counts[counter].add(operation(region, first, last))
        notifier.invalidate_range_end(region, first, last)

    def _whole_pages(self, region: Region, first: int, last: int) -> tuple[int, int]:
        """[first, last), widened to whole pages of the host as they are now."""
        return self._block(region, first, region.levels[first] or 1)[0], self._block(region, last - 1, region.levels[last - 1] or 1)[1]

    def _block(self, region: Region, index: int, level: int) -> tuple[int, int]:
        pages = self.stage.vm.kvm.geometry.pages(level)
        first = ((region.hva + index) & -pages) - region.hva
        return max(first, 0), min(first + pages, region.pages)

    def age(self, region: Region, first: int, last: int) -> None:
        """page_idle, multi-gen LRU: what has been used since the last look?"""
        notifier = self.stage.vm.notifier
        young = self._dice.choice([notifier.clear_flush_young, notifier.clear_young, notifier.test_young])(region, first, last)
        self.stage.counts["pages_aged"].add(1)
        self.stage.counts["pages_found_young"].add(young)


class UserfaultHandler(Actor):
    """The VMM's userfaultfd thread: reconfigures a memslot of its own, as a balloon would, and then brings the page in."""

    parks = False

    def __init__(self, stage: Stage, others: list[Actor]) -> None:
        super().__init__(stage, "userfaultfd")
        self._queue = stage.layout.userfaults
        self._others = others

    def finished(self) -> bool:
        """Goes on until everybody who could be waiting is gone; `others` is complete when the run begins."""
        return all(actor.gone.value for actor in self._others)

    def step(self) -> None:
        """Serve one missing page."""
        runtime = self.stage.vm.kvm.runtime
        if not len(self._queue):
            runtime.wait_until("a userfault", lambda: len(self._queue) > 0 or self.finished())
        missing = self._queue.take()
        if missing is None:
            return
        region, index = missing
        with self.stage.vm.kvm.slots_lock:  # what any memslot ioctl begins with
            self.stage.counts["userfaults"].add(1)
        self.stage.vm.host.resolve(region, index)
