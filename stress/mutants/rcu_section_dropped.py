"""The exported zap without its RCU read section."""

from mmu.parts import Zapper
from stress.mutants.case import Case, Mutant


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
        "memslot worker: with mmu_lock held for write walks tdp_mmu_roots, and reads SPTEs, "
        "outside rcu_read_lock()",
        "memslot worker: the lock keeps those out who free roots and tables today; "
        "rcu_dereference() warns all the same",
    ),
    confidence="V",
    tags=("rcu",),
    controlled=Case("explore/fault-vs-delete"),
    threads=Case("BUSTED/rcu-section-dropped"),
)
