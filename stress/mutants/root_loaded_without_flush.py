"""A vCPU loads a root and keeps its TLB."""

from mmu.parts import Vcpu
from stress.mutants.case import Case, Mutant


class KeepTlb(Vcpu):
    """The old root is gone: why flush?"""

    def flush_loaded(self) -> None:
        """Nothing."""


VARIANT = Mutant(
    name="root-loaded-without-flush",
    title="a vCPU keeps its TLB when it loads another root",
    parts=(KeepTlb,),
    expects=("O1", "O2"),
    rule=(
        "an invalid root is zapped without a flush, because everybody who used it flushes when he "
        "loads another"
    ),
    origin="reference 2.6 no-flush rule, 2.8 kvm_mmu_load()",
    story=(
        "vCPU: TLB holds gfn G",
        "memslot worker: invalidates the root, has the vCPU drop it, zaps it without a flush, "
        "releases the page",
        "vCPU: loads another root; uses G through its TLB",
    ),
    confidence="V",
    tags=("flush", "roots"),
    controlled=Case("explore/obsolete-root"),
    threads=Case("quick", ("vm.have_exported_tdp=false",)),
)
