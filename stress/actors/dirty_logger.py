"""The dirty logger: live migration's view of a fixed slot."""

from __future__ import annotations

from collections.abc import Iterator

from mmu.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES
from stress.actors.base import Actor, Stage
from stress.actors.layout import fixed_region
from stress.actors.slots import read_log
from stress.scenario.operations import Op


class DirtyLogger(Actor):
    """Logging on, a number of reads, logging off. What it reads is judged by the O8 oracle against
    the ground truth."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage, "dirty-logger")
        config = stage.scenario.actors.dirty_log
        self._dice = stage.dice(self.name)
        self._pause = config.pause_s
        self._reads = config.reads
        self._slot = stage.layout.fixed[config.slot]
        self._left = 0
        self._logging = False
        self.verbs |= {"log-on": self.log_on, "log-off": self.log_off, "read-log": self.read}

    def choose(self) -> Iterator[Op]:
        """One ioctl."""
        if not self._logging:
            yield Op("log-on")
            self._left = self._reads
        elif not self._left:
            yield Op("log-off")
        else:
            self._left -= 1
            yield Op("read-log")

    def rest(self) -> None:
        """A random pause."""
        self.stage.vm.kvm.runtime.sleep(self._dice.random() * self._pause)

    def log_on(self) -> None:
        """Logging on; nothing if it is."""
        if not self._logging:
            self._logging = self._set_flags(KVM_MEM_LOG_DIRTY_PAGES)

    def log_off(self) -> None:
        """Logging off; nothing if it is."""
        if self._logging:
            self._logging = not self._set_flags(0)

    def read(self) -> None:
        """KVM_GET_DIRTY_LOG, and KVM_CLEAR_DIRTY_LOG where the log is cleared by hand; nothing if
        logging is off."""
        if self._logging:
            read_log(self.stage, self._slot.slot)

    def _set_flags(self, flags: int) -> bool:
        region = self.stage.layout.fixed_regions[self._slot.region]
        return self.stage.set_region(fixed_region(self._slot, region, flags))
