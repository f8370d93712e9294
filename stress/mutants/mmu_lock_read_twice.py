"""A fault takes mmu_lock for read although it holds it."""

from mmu.parts import Fault, FaultHandler, PageCache, RetPf, RootPage
from stress.mutants.case import Case, Mutant


class LockAgain(FaultHandler):
    """map() does not trust its callers."""

    def map(self, root: RootPage, cache: PageCache, fault: Fault) -> RetPf:
        """With a read lock of its own."""
        mmu_lock = self.kvm.mmu_lock
        mmu_lock.read_lock(fault.hold)
        result = super().map(root, cache, fault)
        mmu_lock.read_unlock(fault.hold)
        return result


VARIANT = Mutant(
    name="mmu-lock-read-twice",
    title="a fault takes mmu_lock for read inside a read",
    parts=(LockAgain,),
    expects=("O5",),
    rule=(
        "mmu_lock is fair: a waiting writer holds off the second read, and the first one holds off "
        "the writer"
    ),
    origin="reference 2.1 rule 8",
    story=(
        "vCPU: read_lock",
        "memslot worker: waits for write",
        "vCPU: read_lock again: waits behind the writer",
    ),
    confidence="V",
    tags=("locks", "faults"),
    controlled=Case("explore/fault-vs-delete"),
    threads=Case("quick"),
)
