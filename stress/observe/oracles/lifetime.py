"""O2 for the VM as a whole: nobody works on it once it has been destroyed."""

from __future__ import annotations

from mmu.probe import override
from stress.observe.oracles.base import Oracle


class LifetimeOracle(Oracle):
    """What KASAN would say of `struct kvm`, at the two doors that whoever keeps a TDP FD comes
    through."""

    rules = ("O2",)
    title = "nobody takes mmu_lock of, or handles an IO fault for, a VM that has been destroyed"

    @override
    def mmu_write_locked(self) -> None:
        if self.vm.destroyed.value:
            self._report("mmu_lock")

    @override
    def io_fault_begin(self, device: object, gfn: int, write: bool) -> None:
        if self.vm.destroyed.value:
            self._report("IO page fault")

    def _report(self, what: str) -> None:
        self.kvm.warn(
            "O2",
            "vm-used-after-free",
            f"BUG: use-after-free: {what} of a VM that has been destroyed",
            "a TDP FD holds a reference on the VM whose tables it has handed out, whichever fd is "
            "closed first",
            "kvm_create_tdp_fd() kvm_get_kvm_safe(); reference 1.3, 1.6, B29 (5f6de5cbebee)",
            subject=what,
        )
