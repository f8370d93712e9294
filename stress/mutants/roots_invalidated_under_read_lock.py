"""The roots are invalidated with mmu_lock held for read."""

from mmu.parts import Zapper
from stress.mutants.case import Case, Mutant


class InvalidateAsReader(Zapper):
    """zap_all_fast() that does not stop the faults."""

    def zap_all_fast(self) -> None:
        """Invalidate next to page faults; zap the exported roots as a writer all the same."""
        mmu_lock = self.kvm.mmu_lock
        mmu_lock.read_lock()
        self.obsolete_roots()
        mmu_lock.read_unlock()
        mmu_lock.write_lock()
        self.zap_exported_roots()
        mmu_lock.write_unlock()
        self.zap_invalidated_roots()


VARIANT = Mutant(
    name="roots-invalidated-under-read-lock",
    title="the roots are invalidated with mmu_lock held for read only",
    parts=(InvalidateAsReader,),
    expects=("O5",),
    rule=(
        "role.invalid is set with mmu_lock held for write, so that it does not change between a "
        "fault's check and its mapping"
    ),
    origin="reference 2.1, 2.14 kvm_tdp_mmu_invalidate_all_roots(), invariant I4",
    story=(
        "vCPU: read_lock: its root is valid",
        "memslot worker: read_lock: invalidates it",
        "vCPU: maps in an invalid root",
    ),
    confidence="V",
    tags=("locks", "roots"),
    controlled=Case("explore/fault-vs-delete"),
    threads=Case("quick"),
)
