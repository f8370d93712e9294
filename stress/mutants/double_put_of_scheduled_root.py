"""Every invalid root is zapped and put by every call, not only the scheduled ones."""

from mmu.parts import Zapper
from stress.mutants.case import Case, Mutant


class ZapEveryInvalidRoot(Zapper):
    """Ignores tdp_mmu_scheduled_root_to_zap."""

    def zap_invalidated_roots(self) -> None:
        """Zap and put all invalid roots."""
        kvm = self.kvm
        kvm.mmu_lock.read_lock()
        for root in self.roots.each_yield_safe(shared=True):
            if root.invalid.value:
                self.zap_scheduled_root(root)
        kvm.mmu_lock.read_unlock()


VARIANT = Mutant(
    name="double-put-of-invalid-root",
    title="an invalid root is zapped and put once for every memslot update",
    parts=(ZapEveryInvalidRoot,),
    expects=("O4",),
    rule="the gifted reference of an invalidated root is put once",
    origin="B22 (0df9dab891ff), the flag tdp_mmu_scheduled_root_to_zap",
    story=(
        "memslot worker: invalidates root R, zaps it, puts the TDP MMU's reference; a vCPU still "
        "holds R",
        "memslot worker: next update, R is still on the list: puts again",
        "vCPU: drops R - underflow",
    ),
    confidence="V",
    tags=("roots",),
    controlled=Case("explore/two-deletes"),
    threads=Case("BUSTED/double-put-of-invalid-root"),
)
