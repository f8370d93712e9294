"""A vCPU is loaded on another physical CPU and requests no flush."""

from mmu.parts import Vcpu
from stress.mutants.case import Case, Mutant


class TrustsTheCpu(Vcpu):
    """Every flush was served, so what is stale?"""

    def flush_migrated(self) -> None:
        """Request nothing."""


VARIANT = Mutant(
    name="vcpu-migrated-without-flush",
    title="a vCPU that is loaded on another physical CPU does not flush there",
    parts=(TrustsTheCpu,),
    expects=("O1", "O2"),
    rule=(
        "a remote flush reaches the CPU that a vCPU is on when it serves it; what the vCPU has "
        "left on another CPU is flushed when it is loaded there again"
    ),
    origin="vmx_vcpu_load_vmcs(), KVM_REQ_TLB_FLUSH; reference 2.6 no-flush rule, D4",
    story=(
        "vCPU: reads gfn G on CPU 0, which caches it, and moves to CPU 1",
        "host: takes the page of G and requests a flush",
        "vCPU: flushes CPU 1, moves back to CPU 0, and reads G through its TLB",
    ),
    confidence="V",
    tags=("flush",),
    controlled=Case("explore/migration-vs-discard"),
    threads=Case("migrating-vcpus"),
)
