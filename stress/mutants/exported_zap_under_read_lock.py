"""The exported zap under the read lock, next to page faults."""

from mmu.parts import Zapper
from stress.mutants.case import Case, Mutant


class ZapUnderReadLock(Zapper):
    """zap_all_fast() that zaps the exported roots together with the invalidated ones."""

    def zap_all_fast(self) -> None:
        """Only invalidate under the write lock; zap the exported leaves as a reader."""
        kvm = self.kvm
        kvm.mmu_lock.write_lock()
        self.obsolete_roots()
        kvm.mmu_lock.write_unlock()
        kvm.mmu_lock.read_lock()
        self.zap_exported_roots()
        kvm.mmu_lock.read_unlock()
        self.zap_invalidated_roots()


VARIANT = Mutant(
    name="exported-zap-under-read-lock",
    title="the exported zap takes mmu_lock for read only",
    parts=(ZapUnderReadLock,),
    expects=("O5",),
    rule=(
        "tdp_mmu_zap_leafs() writes SPTEs without compare-exchange, so it needs mmu_lock held for "
        "write"
    ),
    origin="B51 (5a324c24b638); reference 2.14",
    story=(
        "memslot worker: read_lock, reads leaf G",
        "vCPU: read_lock, installs a leaf next to it",
        "memslot worker: plain store of 0",
    ),
    confidence="V",
    tags=("seed", "locks"),
    controlled=Case("explore/delete-vs-dma"),
    threads=Case("BUSTED/exported-zap-under-read-lock"),
)
