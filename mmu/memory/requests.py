"""vCPU requests, guest mode and kicks: how one task makes every running vCPU notice something
(virt/kvm/kvm_main.c)."""

from __future__ import annotations

from typing import Final

from mmu.kvm import Kvm
from mmu.runtime import Cell, Counter, Runtime

OUTSIDE_GUEST_MODE: Final = 0
IN_GUEST_MODE: Final = 1
EXITING_GUEST_MODE: Final = 2

KVM_REQ_TLB_FLUSH: Final = 1 << 0
KVM_REQ_TLB_FLUSH_CURRENT: Final = 1 << 1
KVM_REQ_UPDATE_CPU_DIRTY_LOGGING: Final = 1 << 30
KVM_REQ_MMU_FREE_OBSOLETE_ROOTS: Final = 1 << 31


class RunState:
    """What others may see and set of a vCPU: pending request bits, its mode, and how often it has
    left the guest."""

    __slots__ = ("exits", "mode", "name", "requests")

    def __init__(self, runtime: Runtime, name: str) -> None:
        self.name = name
        self.requests: Counter = runtime.counter("vcpu.requests")
        self.mode: Cell[int] = runtime.cell("vcpu.mode", OUTSIDE_GUEST_MODE)
        self.exits: Cell[int] = runtime.cell("vcpu.exits", 0)


class Requests:
    """kvm_make_all_cpus_request() and friends over the VM's vCPUs."""

    STANDS_FOR: Final = "virt/kvm/kvm_main.c: kvm_make_all_cpus_request(), kvm_vcpu_kick()"

    def __init__(self, kvm: Kvm) -> None:
        self._kvm = kvm
        self._vcpus: Cell[tuple[RunState, ...]] = kvm.runtime.cell("kvm.vcpus", ())

    def add(self, state: RunState) -> None:
        """A vCPU comes online."""
        while True:
            seen = self._vcpus.value
            if self._vcpus.cmpxchg(seen, (*seen, state)) == seen:
                return

    def remove(self, state: RunState) -> None:
        """A vCPU is destroyed."""
        while True:
            seen = self._vcpus.value
            if (
                self._vcpus.cmpxchg(seen, tuple(other for other in seen if other is not state))
                == seen
            ):
                return

    def make_all_cpus_request(self, bit: int, *, wait: bool = True) -> int:
        """Set `bit` on every vCPU and, with `wait`, wait until those in guest mode have left it
        (KVM_REQUEST_WAIT, NO_WAKEUP).

        Returns how many had to be kicked. A vCPU that is not in guest mode is not waited for: it
        looks at its requests after it has announced guest mode, so it cannot miss this one.
        """
        kicked = []
        for state in self._vcpus.value:
            state.requests.fetch_or(bit)
            before = state.exits.value
            if self._exiting_guest_mode(state) != OUTSIDE_GUEST_MODE:
                kicked.append((state, before))
        for state, before in kicked if wait else ():
            self._wait_for_exit(state, before)
        return len(kicked)

    def kick_all(self) -> None:
        """kvm_vcpu_kick() on every vCPU: those in the guest leave it soon. Waits for nobody."""
        for state in self._vcpus.value:
            self._exiting_guest_mode(state)

    def _exiting_guest_mode(self, state: RunState) -> int:
        """kvm_vcpu_exiting_guest_mode(): ask it to leave; returns the mode it was in."""
        return state.mode.cmpxchg(IN_GUEST_MODE, EXITING_GUEST_MODE)

    def _wait_for_exit(self, state: RunState, before: int) -> None:
        """The IPI's acknowledgement."""
        mode, exits = state.mode, state.exits
        self._kvm.runtime.wait_until(
            f"{state.name} to leave guest mode",
            lambda: exits.value != before or mode.value == OUTSIDE_GUEST_MODE,
        )
