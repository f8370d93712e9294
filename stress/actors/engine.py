"""The DMA engine of a device: accesses memory whatever the device's driver does meanwhile."""

from __future__ import annotations

from collections.abc import Iterator

from mmu.export.device import Dma
from mmu.export.iommu import PageRequest
from stress.actors.accesses import AccessProgram, Habits, program
from stress.actors.base import Actor, Stage
from stress.actors.consumer import Consumer
from stress.scenario.operations import Op

CREDITS = 4
"""Page requests of one engine that may be without an answer; what faults beyond that is dropped
(PCI PRI, Outstanding Page Request Allocation)."""


class DmaEngine(Actor):
    """Makes DMA of its own accord, also while the driver detaches the device, un-exports the root
    or destroys the domain. What faults is requested from the domain that the device is attached to
    at that moment; nothing waits for the answer."""

    def __init__(self, stage: Stage, number: int, consumer: Consumer) -> None:
        super().__init__(stage, f"engine{number}")
        config = stage.scenario.actors.consumer
        self._dice = stage.dice(self.name)
        self._consumer = consumer
        self._group = config.group
        self._bursts = config.bursts
        habits = Habits(config.write_share, config.churn_share, 0.01, config.window_pages)
        self._programs: list[AccessProgram] = (
            [program(stage, self._dice, 0, habits)] if self.script is None else []
        )
        self._outstanding: list[PageRequest] = []
        self.accesses = 0
        self.aborts = 0
        self.verbs |= {"post": self.post}

    def choose(self) -> Iterator[Op]:
        """A burst."""
        (accesses,) = self._programs
        for _ in range(self._bursts):
            group = accesses.ahead(self._group)
            accesses.advance(self._group)
            yield Op("post", group)

    def rest(self) -> None:
        """The pause until the device's next work."""
        self.stage.vm.kvm.runtime.sleep(self._dice.random() * 0.001)

    def post(self, *accesses: int) -> None:
        """Transfer a scatter list; what faults is requested as one group, and not tried again."""
        missing = []
        for access in accesses:
            gfn, write = access >> 1, bool(access & 1)
            done = self._consumer.device.transact(gfn, write)
            self.accesses += done is Dma.DONE
            if done is None:
                missing.append((gfn, write))
        if missing:
            self._request(missing)
        self.aborts += len(missing)

    def _request(self, missing: list[tuple[int, bool]]) -> None:
        hwpt = self._consumer.hwpt
        self._outstanding = [each for each in self._outstanding if not each.code.value]
        if hwpt is None or len(self._outstanding) == CREDITS:
            return
        request = hwpt.request_of_its_own(missing)
        if request is not None:
            self._outstanding.append(request)
            self._consumer.worker.queue.put(request)

    def figures(self) -> dict[str, int]:
        """The engine's counters."""
        return {"accesses": self.accesses, "aborts": self.aborts}

    def totals(self) -> dict[str, int]:
        """Its share of the run's counters."""
        return {"device_accesses": self.accesses, "device_aborts": self.aborts}
