"""The end of the process: its memory goes before its files are closed, so devices are still at
work."""

from __future__ import annotations

from stress.actors.base import Actor, Stage


class ProcessExit(Actor):
    """Waits until every thread that could enter the kernel is gone, then lets the address space go
    (exit_mmap)."""

    parks = False
    serves = True

    def __init__(self, stage: Stage, others: list[Actor]) -> None:
        super().__init__(stage, "exit")
        self._others = others

    def step(self) -> None:
        """Nothing before the end."""
        self.stage.vm.kvm.runtime.wait_until("the end of the run", self._over, patience=0.01)

    def _over(self) -> bool:
        stopping = self.stage.run_flags.stopping
        return stopping.value or all(actor.done.value for actor in self._others)

    def finished(self) -> bool:
        """When everybody else has stopped."""
        return self._over()

    def end(self) -> None:
        """exit_mmap; the VM's fd may be closed before."""
        vm = self.stage.vm
        vm.kvm.runtime.wait_for_all(
            "the other threads of the process", *(actor.gone for actor in self._others)
        )
        if self.stage.scenario.actors.exit.vm_first:
            self.stage.close_vm()
        vm.exit_mm()
        self.stage.counts["process_exits"].add(1)
