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
    """Times every write-held section, and bounds walks. The other liveness rules are the watchdog's and RCU's own."""

    rules = ("O10",)
    title = "no write-held section of mmu_lock lasts longer than limits.write_hold_s, no walk that cannot yield goes limits.walk_steps"

    def __init__(self, vm: VirtualMachine, limits: Limits) -> None:
        super().__init__(vm, limits)
        self._since = _Since()
        self._longest_ns = int(limits.write_hold_s * 1e9)
        self._steps = limits.walk_steps

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

    def walk_section(self, steps: int, ns: int, can_yield: bool) -> None:
        """A walk has gone that far without yielding; one that would have, had anybody waited, has done no harm."""
        if self._steps and steps > self._steps and not can_yield:
            self.kvm.warn(
                "O10",
                "unbounded-walk",
                f"WARNING: a zap visited {steps:,} SPTEs without yielding, under mmu_lock and inside one RCU section",
                f"the caller of a zap that cannot yield must bound its range, or it risks a soft lockup: the bound is {self._steps:,}",
                "tdp_mmu_zap_leafs(can_yield=false); R13 unbounded non-yielding zap; B33, B34",
            )
