"""A vCPU that loads a root flushes first and loads then."""

from mmu.parts import Vcpu
from stress.mutants.case import Case, Mutant


class FlushesFirst(Vcpu):
    """One flush is as good as another."""

    def load_root(self) -> None:
        """Without a root there is nothing that the flush is for."""
        super().flush_loaded()
        super().load_root()

    def flush_loaded(self) -> None:
        """Done already."""


VARIANT = Mutant(
    name="root-flushed-before-loaded",
    title="kvm_mmu_load() flushes the current root before it loads the new one",
    parts=(FlushesFirst,),
    expects=("O1", "O2"),
    rule=(
        "the flush at the end of kvm_mmu_load() is for the address of the new root, at which a "
        "freed root may have left translations"
    ),
    origin="kvm_mmu_load(), vmx_flush_tlb_current(); reference 2.6 no-flush rule, D16, D28",
    story=(
        "vCPU: its CPU caches gfn G below root R",
        "memslot worker: makes R invalid, zaps it without a flush; R is freed",
        "vCPU: flushes, but has no root; loads a new one at the address of R",
        "vCPU: reads G through what was cached below the old R",
    ),
    confidence="V",
    tags=("flush", "roots"),
    controlled=Case("explore/root-comes-back"),
    threads=Case("migrating-vcpus"),
)
