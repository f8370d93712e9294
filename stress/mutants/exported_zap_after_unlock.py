"""The exported zap moved behind write_unlock."""

from mmu.parts import Zapper
from stress.mutants.case import Case, Mutant


class ZapAfterUnlock(Zapper):
    """zap_all_fast() with steps 7 and 8 exchanged."""

    def zap_all_fast(self) -> None:
        """Release mmu_lock first, zap the exported roots then."""
        kvm = self.kvm
        kvm.mmu_lock.write_lock()
        self.obsolete_roots()
        kvm.mmu_lock.write_unlock()
        self.zap_exported_roots()
        self.zap_invalidated_roots()


VARIANT = Mutant(
    name="exported-zap-after-unlock",
    title="the exported zap runs after write_unlock",
    parts=(ZapAfterUnlock,),
    expects=("O5",),
    rule="tdp_mmu_zap_leafs() needs mmu_lock held for write",
    origin="reference 2.7 order of steps 7 and 8, 2.14",
    story=(
        "memslot worker: write_unlock, then starts the leaf zap",
        "vCPU: takes mmu_lock for read and installs a leaf behind the zapper",
        "memslot worker: plain stores race with the vCPU's compare-exchange",
    ),
    confidence="V",
    tags=("seed", "locks"),
    controlled=Case("explore/delete-vs-dma"),
    threads=Case("BUSTED/exported-zap-after-unlock"),
)
