"""What an actor is: one thread with a part to play, made of steps."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod

from mmu.errors import KvmError
from mmu.machine.vm import VirtualMachine
from mmu.memory.memslots import MemoryRegion
from mmu.runtime import Cell
from stress.actors.layout import Layout
from stress.engines.control import Control
from stress.observe.counts import Counts
from stress.scenario.types import Scenario


class Stage:
    """What actors share: the VM, where its memory lies, the scenario, the counters and the engine's flags."""

    def __init__(self, vm: VirtualMachine, layout: Layout, scenario: Scenario, seed: int, counts: Counts, control: Control) -> None:
        self.vm = vm
        self.layout = layout
        self.scenario = scenario
        self.seed = seed
        self.counts = counts
        self.control = control
        self._vm_closed = vm.kvm.runtime.cell("vm_fd.closed", False)

    def close_vm(self) -> None:
        """Close the VM's fd, once."""
        if not self._vm_closed.cmpxchg(False, True):
            self.vm.put()

    def set_region(self, region: MemoryRegion) -> bool:
        """KVM_SET_USER_MEMORY_REGION; a refusal, as fault injection brings about, is counted: false."""
        try:
            self.vm.set_user_memory_region(region)
        except KvmError:
            self.counts["memslots_refused"].add(1)
            return False
        return True

    def dice(self, name: str) -> random.Random:
        """The random generator of an actor: its choices follow from the seed and its name alone."""
        return random.Random(f"{self.seed}/{name}")


class Actor(ABC):
    """One thread. `begin` runs before the common start, `step` again and again, `end` after the last step.

    `progress` counts steps; the watchdog calls an actor stuck when it stands still. `parks` says whether the actor
    stands still during a pause; one that only serves others does not need to.
    """

    parks = True

    def __init__(self, stage: Stage, name: str) -> None:
        self.stage = stage
        self.name = name
        self.progress = 0
        runtime = stage.vm.kvm.runtime
        self.done: Cell[bool] = runtime.cell(f"{name}.done", False)
        """The last step is over."""
        self.gone: Cell[bool] = runtime.cell(f"{name}.gone", False)
        """And everything after it."""

    def body(self) -> None:
        """What the thread runs."""
        self.begin()
        control = self.stage.control
        control.wait_for_start()
        try:
            while not self.finished():
                if self.parks and control.pausing.value:
                    control.checkpoint()
                    continue
                self.step()
                self.progress += 1
        finally:
            self.done.value = True
            try:
                self.end()
            finally:
                self.gone.value = True

    def finished(self) -> bool:
        """Whether the loop ends: the run is over, or this actor has done its share."""
        control = self.stage.control
        return control.stopping.value or self.progress >= control.rounds

    def begin(self) -> None:  # noqa: B027 - most actors need no preparation
        """Get ready."""

    @abstractmethod
    def step(self) -> None:
        """Do one thing."""

    def end(self) -> None:  # noqa: B027 - nor any cleaning up
        """Clean up."""

    def moved(self) -> int:
        """A number that changes while the actor gets anywhere; what the watchdog looks at."""
        return self.progress

    def figures(self) -> dict[str, int]:
        """This actor's own counters, for the report; may be read while it runs."""
        return {"steps": self.progress}

    def totals(self) -> dict[str, int]:
        """Its share of the run's counters, by the names of `stress.observe.counters`."""
        return {}
