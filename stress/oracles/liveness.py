"""O10 by bounds: mmu_lock is not held for write for longer than the scenario allows."""

from __future__ import annotations

import threading

from mmu.machine.vm import VirtualMachine
from stress.oracles.base import Oracle
from stress.scenario.types import Limits


class _Since(threading.local):
    """When the calling thread took mmu_lock for write, in nanoseconds."""

    def __init__(self) -> None:
        self.locked_at = 0


class LivenessOracle(Oracle):
    """Times every write-held section. The other liveness rules are the watchdog's and RCU's own."""

    rules = ("O10",)
    title = "no write-held section of mmu_lock lasts longer than limits.write_hold_s"

    def __init__(self, vm: VirtualMachine, limits: Limits) -> None:
        super().__init__(vm, limits)
        self._since = _Since()
        self._longest_ns = int(limits.write_hold_s * 1e9)

    def mmu_write_locked(self) -> None:
        """The section begins."""
        self._since.locked_at = self.kvm.runtime.now()

    def mmu_write_unlocking(self) -> None:
        """It ends."""
        held = self.kvm.runtime.now() - self._since.locked_at
        if held > self._longest_ns:
            self.kvm.warn(
                "O10",
                "long-write-hold",
                f"WARNING: mmu_lock was held for write for {held / 1e9:.3f} s",
                f"everybody else waits meanwhile: the bound is {self._longest_ns / 1e9:g} s",
                "soft lockup; reference O10, R13, M1",
            )
