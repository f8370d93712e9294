"""slots_arch_lock is held while SRCU readers are waited for."""

from mmu.parts import Memslots
from stress.mutants.case import Case, Mutant


class KeepArchLock(Memslots):
    """Releases slots_arch_lock when the update is done."""

    def synchronize_srcu(self) -> None:
        """Wait with the lock held."""
        with self.kvm.slots_arch_lock:
            super().synchronize_srcu()


VARIANT = Mutant(
    name="arch-lock-held-for-srcu",
    title="slots_arch_lock is held while SRCU readers are waited for",
    parts=(KeepArchLock,),
    expects=("O5",),
    rule=(
        "slots_arch_lock may be taken inside an SRCU read section, so it is released before "
        "readers are waited for"
    ),
    origin="Documentation/virt/kvm/locking.rst on slots_arch_lock; reference 2.1 rule 3",
    story=(
        "vCPU: inside SRCU: takes slots_arch_lock to allocate metadata",
        "memslot worker: holds slots_arch_lock, waits for the vCPU to leave SRCU",
    ),
    confidence="V",
    tags=("locks", "memslots"),
    controlled=Case("explore/fault-vs-delete"),
    threads=Case("quick"),
)
