"""The setter of the fault path compares and stores in two steps."""

from mmu.parts import ShadowPage, SpteWriter
from stress.mutants.case import Case, Mutant


class CompareThenStore(SpteWriter):
    """try_cmpxchg64() spelled out."""

    def set_spte_atomic(self, sp: ShadowPage, index: int, gfn: int, old: int, new: int) -> bool:
        """Look, then store; on one CPU it would do."""
        if sp.spt[index] != old:
            return False
        self.kvm.runtime.resched()
        sp.spt.store(index, new)
        self.handle_changed_spte(sp, gfn, old, new, True)
        return True


VARIANT = Mutant(
    name="atomic-setter-not-atomic",
    title="under mmu_lock(read) SPTEs are compared and stored in two steps",
    parts=(CompareThenStore,),
    expects=("O9", "O11"),
    rule=(
        "those who share mmu_lock change SPTEs by compare-exchange: one of them wins, the others "
        "learn of it"
    ),
    origin="reference 2.6 tdp_mmu_set_spte_atomic()",
    story=(
        "vCPU 0: finds the entry empty",
        "vCPU 1: finds it empty, links its table",
        "vCPU 0: stores its own table over it: the other is lost, with what it maps",
    ),
    confidence="V",
    tags=("atomic", "faults"),
    controlled=Case("explore/same-page-twice"),
    threads=Case(
        "quick",
        (
            "vm.vcpus=4",
            "vm.have_exported_tdp=false",
            "actors.vcpu.smm_share=0.0",
            "memory.fixed_pages=8",
            "memory.churn_pages=8",
        ),
    ),
)
