"""kvm_zap_gfn_range() zaps with mmu_lock held for read, without freezing what it clears."""

from mmu.parts import PG_LEVEL_4K, RootPage, TdpIter, Zapper
from stress.mutants.case import Case, Mutant


class ZapAsReader(Zapper):
    """Lets faults go on meanwhile."""

    def zap_gfn_range(self, start: int, end: int) -> None:
        """Zap all roots by compare-exchange, flush at the end."""
        kvm = self.kvm
        kvm.mmu_lock.read_lock()
        for root in self.roots.each_yield_safe(shared=True):
            kvm.rcu.read_lock()
            self._zap_range(root, start, end)
            kvm.rcu.read_unlock()
        self.tlb.flush("gfn-range")
        kvm.mmu_lock.read_unlock()

    def _zap_range(self, root: RootPage, start: int, end: int) -> None:
        it = TdpIter(self.kvm, root, PG_LEVEL_4K, start, end)
        while it.valid:
            while self.kvm.layout.is_leaf(
                it.old_spte, it.level
            ) and not self.writer.iter_set_spte_atomic(it, 0):
                pass
            it.next_present()


VARIANT = Mutant(
    name="range-zapped-as-reader",
    title="a range of gfns is zapped under mmu_lock(read), next to faults",
    parts=(ZapAsReader,),
    expects=("O1",),
    rule=(
        "under the read lock an entry is frozen until what it mapped was flushed, or a fault "
        "refills it before"
    ),
    origin="B51 (5a324c24b638, which took it back)",
    story=(
        "administrator: read_lock, clears the leaf of gfn G",
        "vCPU: read_lock, maps another frame at G",
        "administrator: flushes: two CPUs have used two frames for G",
    ),
    confidence="Vt",
    tags=("locks", "flush"),
    controlled=Case("explore/attributes-vs-fault"),
    threads=Case("quick", ("actors.nx.enabled=true", "actors.nx.attributes_share=1.0")),
)
