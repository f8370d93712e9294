"""A vCPU fills its caches of page-table pages with mmu_lock held."""

from mmu.parts import Vcpu
from stress.mutants.case import Case, Mutant


class TopUpLate(Vcpu):
    """Allocates when it knows that it has to."""

    def load_root(self) -> None:
        """kvm_mmu_load() in the wrong order."""
        self._roots.load_lock()
        self.cache.topup()
        self.root = self._roots.get_vcpu_root(self.role)
        self._roots.load_unlock()
        self.tlb = self.cpu.cache_of(self.root)
        self.stat.root_loads += 1
        self.flush_loaded()


VARIANT = Mutant(
    name="caches-filled-under-mmu-lock",
    title="page-table pages are allocated, with sleeping, under mmu_lock",
    parts=(TopUpLate,),
    expects=("O5",),
    rule="nothing sleeps with mmu_lock held: what is allocated is allocated before",
    origin="reference 2.1 rule 6, 2.8 root load",
    story=(
        "vCPU: takes mmu_lock for write",
        "vCPU: allocates: may wait for reclaim, which may wait for an MMU notifier, which waits "
        "for mmu_lock",
    ),
    confidence="V",
    tags=("locks", "roots"),
    controlled=Case("explore/obsolete-root"),
    threads=Case("quick"),
)
