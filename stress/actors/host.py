"""The host's memory management: takes pages away and changes their size while guests and devices
use them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mmu.memory.host import Region
from stress.actors.base import Actor, Stage
from stress.scenario.operations import HOW, Op

OPERATIONS = ("discard", "migrate", "split", "collapse", "age")


class HostActor(Actor):
    """One thread of kswapd, khugepaged and compaction: every change happens between range_start and
    range_end.

    Its operations name a region by its number and pages [first, last) of it; what is not there is
    left alone.
    """

    def __init__(self, stage: Stage, number: int) -> None:
        super().__init__(stage, f"host{number}")
        config = stage.scenario.actors.host
        self._dice = stage.dice(self.name)
        self._pause = config.pause_s
        self._longest = config.range_pages
        self._weights: list[float] = [
            config.discard_weight,
            config.migrate_weight,
            config.split_weight,
            config.collapse_weight,
            config.age_weight,
        ]
        operations = (self.discard, self.migrate, self.split, self.collapse)
        self.verbs |= {
            name: self._on_region(operation)
            for name, operation in zip(OPERATIONS, operations, strict=False)
        }
        self.verbs["age"] = self._age

    def choose(self) -> Iterator[Op]:
        """One operation on one range of some memory that the VM has; half of the splits move a page
        at once."""
        dice = self._dice
        backing = [
            (number, region)
            for number, region in enumerate(self.stage.layout.backing())
            if region is not None
        ]
        if not backing:
            return
        number, region = dice.choice(backing)
        first = dice.randrange(region.pages)
        last = min(region.pages, first + 1 + dice.randrange(self._longest))
        name = dice.choices(OPERATIONS, self._weights)[0]
        how = (dice.randrange(len(HOW.words)),) if name == "age" else ()
        yield Op(name, (number, first, last, *how))
        if name == "split" and dice.random() < 0.5:
            yield Op("migrate", (number, first, first + 1))

    def rest(self) -> None:
        """A random pause."""
        if self._pause:
            self.stage.vm.kvm.runtime.sleep(self._dice.random() * self._pause)

    def _on_region(
        self, operation: Callable[[Region, int, int], None]
    ) -> Callable[[int, int, int], None]:
        """The operation on what is there of a region, by its number."""

        def on_region(number: int, first: int, last: int) -> None:
            region = self.stage.layout.backing()[number]
            if region is not None and first < min(last, region.pages):
                operation(region, first, min(last, region.pages))

        return on_region

    def _age(self, number: int, first: int, last: int, how: int) -> None:
        self._on_region(lambda region, first, last: self.age(region, first, last, how))(
            number, first, last
        )

    def discard(self, region: Region, first: int, last: int) -> None:
        """Reclaim: the frames are free as soon as range_start has returned."""
        self._change(
            "host_pages_discarded",
            self.stage.vm.host.discard,
            region,
            *self._whole_pages(region, first, last),
        )

    def migrate(self, region: Region, first: int, last: int) -> None:
        """Compaction: the same contents in other frames."""
        self._change(
            "host_pages_migrated",
            self.stage.vm.host.migrate,
            region,
            *self._whole_pages(region, first, last),
        )

    def split(self, region: Region, first: int, last: int) -> None:
        """The host's huge pages become small ones."""
        self._change(
            "host_splits", self.stage.vm.host.split, region, *self._whole_pages(region, first, last)
        )

    def collapse(self, region: Region, first: int, last: int) -> None:  # noqa: ARG002 - one huge page
        """khugepaged: small pages become a huge one."""
        if region.max_level > 1:
            host = self.stage.vm.host
            self._change(
                "host_collapses",
                lambda region, start, _: host.collapse(region, start, 2),
                region,
                *self._block(region, first, 2),
            )

    def age(self, region: Region, first: int, last: int, how: int) -> None:
        """page_idle, multi-gen LRU: what has been used since the last look? `how` is an index into
        `HOW.words`."""
        notifier = self.stage.vm.notifier
        young = (notifier.clear_flush_young, notifier.clear_young, notifier.test_young)[how](
            region, first, last
        )
        self.stage.counts["pages_aged"].add(1)
        self.stage.counts["pages_found_young"].add(young)

    def _change(
        self,
        counter: str,
        operation: Callable[[Region, int, int], int],
        region: Region,
        first: int,
        last: int,
    ) -> None:
        """Announce it, do it, and let faults see what is there now."""
        notifier = self.stage.vm.notifier
        notifier.invalidate_range_start(region, first, last)
        self.stage.counts[counter].add(operation(region, first, last))
        notifier.invalidate_range_end(region, first, last)

    def _whole_pages(self, region: Region, first: int, last: int) -> tuple[int, int]:
        """[first, last), widened to whole pages of the host as they are now."""
        return self._block(region, first, region.levels[first] or 1)[0], self._block(
            region, last - 1, region.levels[last - 1] or 1
        )[1]

    def _block(self, region: Region, index: int, level: int) -> tuple[int, int]:
        pages = self.stage.vm.kvm.geometry.pages(level)
        first = ((region.hva + index) & -pages) - region.hva
        return max(first, 0), min(first + pages, region.pages)


class UserfaultHandler(Actor):
    """The VMM's userfaultfd thread: reconfigures a memslot of its own, as a balloon would, and then
    brings the page in."""

    parks = False
    serves = True

    def __init__(self, stage: Stage, others: list[Actor]) -> None:
        super().__init__(stage, "userfaultfd")
        self._queue = stage.layout.userfaults
        self._others = others

    def finished(self) -> bool:
        """Goes on until everybody who could be waiting is gone; `others` is complete when the run
        begins."""
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
