"""The roots that invalidation has spared are zapped after the lock break, exported or not."""

from mmu.parts import Zapper
from stress.mutants.case import Case, Control


class SkippedRoots(Zapper):
    """Step 7 goes by what step 4 did, not by what is exported now."""

    def zap_exported_and_obsolete(self) -> None:
        """Note the exported roots, zap the obsolete pages, then zap what was noted."""
        kvm = self.kvm
        kvm.rcu.read_lock()
        spared = [root for root in self.roots.each_rcu() if root.exported.value]
        kvm.rcu.read_unlock()
        self.zap_obsolete_pages()
        kvm.rcu.read_lock()
        for root in spared:
            self.zap_exported_root(root)
        kvm.rcu.read_unlock()


VARIANT = Control(
    name="skipped-roots-zapped",
    title="the roots that invalidation has spared are zapped after the lock break, exported or not",
    parts=(SkippedRoots,),
    origin="reference 1.11 R22, another mend",
    looks_wrong=(
        "The roots are used after mmu_lock was dropped, without a reference: one that was "
        "un-exported meanwhile has lost its exporter's."
    ),
    right_because=(
        "A root that is still valid has the TDP MMU's own reference, and only who holds slots_lock "
        "could take that away: the caller holds it."
    ),
    tried=(
        Case("explore/unexport-vs-delete"),
        Case("explore/delete-vs-dma"),
        Case("explore/nx-toggle-vs-fetch"),
        Case("quick", ("actors.vcpu.nested_share=0.3", "actors.vcpu.shadow_pages=16")),
    ),
)
