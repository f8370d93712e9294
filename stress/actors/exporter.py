"""Threads of the VMM that create and close TDP FDs without asking each other."""

from __future__ import annotations

from collections.abc import Iterator

from mmu.errors import KvmError
from mmu.export.tdp_fd import TdpFd
from stress.actors.base import Actor, Stage
from stress.scenario.operations import Op

CLOSE = Op("close")


class ExporterActor(Actor):
    """Tries to export the root again and again; holds what it gets for a moment, or closes whatever
    fd it can find."""

    def __init__(self, stage: Stage, number: int) -> None:
        super().__init__(stage, f"exporter{number}")
        config = stage.scenario.actors.exporter
        self._dice = stage.dice(self.name)
        self._hold = config.hold_s
        self._closes = config.closes_others and number > 0
        self._fd: TdpFd | None = None
        self.verbs |= {"export": self.export, "close": self.close, "close-any": self.close_any}

    def choose(self) -> Iterator[Op]:
        """One attempt."""
        if self._closes:
            yield Op("close-any")
            return
        yield Op("export")
        if self._fd is not None:
            self._wait()
            yield CLOSE

    def rest(self) -> None:
        """A random pause; who closes others' fds never rests."""
        if self._closes:
            self.stage.vm.kvm.runtime.resched()
        else:
            self._wait()

    def end(self) -> None:
        """Close what is still held; after everybody's script, if there is one."""
        if self.script is None:
            self.do(CLOSE)
        elif self._fd is not None:
            self.stay()
        self.close()

    def export(self) -> None:
        """KVM_CREATE_TDP_FD; nothing while one is held. A refusal is counted."""
        if self._fd is not None:
            return
        try:
            self._fd = self.stage.vm.create_tdp_fd(0)
        except KvmError:
            self.stage.counts["exports_refused"].add(1)
            return
        self.stage.counts["exports"].add(1)

    def close(self) -> None:
        """close() of the fd that is held, which somebody may have closed before; nothing if there
        is none."""
        fd, self._fd = self._fd, None
        if fd is not None and self.stage.vm.close_tdp_fd(fd):
            self.stage.counts["unexports"].add(1)

    def close_any(self) -> None:
        """A guessed fd number: whatever is in the file table now."""
        vm = self.stage.vm
        for fd in vm.exporter.files.value:
            if vm.close_tdp_fd(fd):
                self.stage.counts["unexports"].add(1)

    def _wait(self) -> None:
        self.stage.vm.kvm.runtime.sleep(self._dice.random() * self._hold)
