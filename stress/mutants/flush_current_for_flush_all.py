"""A vCPU serves a remote flush by flushing its current root."""

from mmu.parts import Vcpu
from stress.mutants.case import Case, Mutant


class FlushesCurrentRoot(Vcpu):
    """No guest runs below another root."""

    def flush_local(self) -> None:
        """What is cached below the loaded root."""
        self.flush_current()


VARIANT = Mutant(
    name="flush-current-for-flush-all",
    title="KVM_REQ_TLB_FLUSH flushes what is cached below the loaded root only",
    parts=(FlushesCurrentRoot,),
    expects=("O1", "O2"),
    rule=(
        "a remote flush is for every root: a vCPU that switches to a root that it has kept "
        "flushes nothing"
    ),
    origin="kvm_vcpu_flush_tlb_all(), vmx_flush_tlb_all(), kvm_mmu_new_pgd(); D4",
    story=(
        "vCPU: reads gfn G, and enters a nested guest, below another root",
        "host: takes the page of G and requests a flush",
        "vCPU: flushes what it has cached below the nested guest's root",
        "vCPU: leaves the nested guest, its old root is still valid, and reads G through its TLB",
    ),
    confidence="V",
    tags=("flush", "roots"),
    controlled=Case("explore/cached-root-vs-discard"),
    threads=Case("migrating-vcpus"),
)
