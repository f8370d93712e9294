"""A fault looks whether it is stale before it takes mmu_lock."""

from mmu.parts import Fault, FaultHandler, PageCache, RetPf, RootPage, Vcpu
from stress.mutants.case import Case, Mutant


class CheckFirst(FaultHandler):
    """Saves a lock where the fault is stale."""

    def page_fault(self, root: RootPage, cache: PageCache, fault: Fault, vcpu: Vcpu) -> RetPf:  # noqa: ARG002 - tells nobody
        """Check, lock, map."""
        cache.topup()
        result = self.faultin_pfn(fault)
        if result is not RetPf.CONTINUE:
            return result
        if self.is_page_fault_stale(root, fault):
            return RetPf.RETRY
        self.kvm.mmu_lock.read_lock(fault.hold)
        result = self.map(root, cache, fault)
        self.kvm.mmu_lock.read_unlock(fault.hold)
        return result


VARIANT = Mutant(
    name="stale-check-before-lock",
    title="a fault looks whether it is stale before it takes mmu_lock",
    parts=(CheckFirst,),
    expects=("O5", "O12"),
    rule="is_page_fault_stale() means something only as long as mmu_lock is held",
    origin="reference 2.8, 2.14; B36, B38",
    story=(
        "vCPU: its root is valid, its frame is current",
        "memslot worker: write_lock: invalidates the root",
        "vCPU: read_lock: maps in the invalid root",
    ),
    confidence="V",
    tags=("locks", "faults"),
    controlled=Case("explore/fault-vs-delete"),
    threads=Case("quick"),
)
