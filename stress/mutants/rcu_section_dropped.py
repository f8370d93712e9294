"""The exported zap without its RCU read section."""

from mmu.tdp.zap import Zapper
from stress.zoo.mutant import Case, Mutant


class NoRcu(Zapper):
    """Relies on mmu_lock alone."""

    def zap_exported_roots(self) -> None:
        """Walk the root list and the tables outside any read section."""
        self.kvm.mmu_lock.assert_held_write()
        for root in self.roots.each_rcu():
            if root.exported.value:
                self.zap_exported_root(root)


VARIANT = Mutant(
    name="rcu-section-dropped",
    title="the RCU read section around the exported zap is dropped",
    parts=(NoRcu,),
    expects=("O3",),
    rule="roots and SPTEs are RCU-protected, whatever locks are held",
    origin="B32 (14f6fec2e8e0, 70fb3e41a97a); reference 2.3, 2.4",
    story=(
        "memslot worker: walks tdp_mmu_roots without rcu_read_lock()",
        "vCPU: drops the last reference of a root, which is unlinked and freed without a reader to wait for",
        "memslot worker: goes on from the freed root",
    ),
    confidence="V",
    tags=("rcu",),
    controlled=Case("explore/fault-vs-delete"),
    threads=Case("BUSTED/rcu-section-dropped"),
)
