"""Threads of the VMM that create and close TDP FDs without asking each other."""

from __future__ import annotations

from mmu.errors import KvmError
from stress.actors.base import Actor, Stage


class ExporterActor(Actor):
    """Tries to export the root again and again; holds what it gets for a moment, or closes whatever fd it can find."""

    def __init__(self, stage: Stage, number: int) -> None:
        super().__init__(stage, f"exporter{number}")
        config = stage.scenario.actors.exporter
        self._dice = stage.dice(self.name)
        self._hold = config.hold_s
        self._closes = config.closes_others and number > 0

    def step(self) -> None:
        """One attempt."""
        if self._closes:
            self._close_any()
        else:
            self._flap()

    def _flap(self) -> None:
        vm, runtime = self.stage.vm, self.stage.vm.kvm.runtime
        try:
            fd = vm.create_tdp_fd(0)
        except KvmError:
            self.stage.counts["exports_refused"].add(1)
            runtime.sleep(self._dice.random() * self._hold)
            return
        self.stage.counts["exports"].add(1)
        runtime.sleep(self._dice.random() * self._hold)
        if vm.close_tdp_fd(fd):
            self.stage.counts["unexports"].add(1)
        runtime.sleep(self._dice.random() * self._hold)

    def _close_any(self) -> None:
        """A guessed fd number: whatever is in the file table now."""
        vm = self.stage.vm
        for fd in vm.exporter.files.value:
            if vm.close_tdp_fd(fd):
                self.stage.counts["unexports"].add(1)
        vm.kvm.runtime.resched()
