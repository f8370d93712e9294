"""Un-export takes exported_tdp_cache_lock with mmu_lock held."""

from mmu.parts import ExportedTdp, Exporter
from stress.mutants.case import Case, Mutant


class InsideOut(Exporter):
    """The two locks of un-export in the other order."""

    def put_exported_tdp(self, exported: ExportedTdp) -> None:
        """mmu_lock first."""
        kvm = self.kvm
        kvm.mmu_lock.write_lock()
        with self.cache_lock:
            root = exported.root.value
            assert root is not None
            root.exported.value = False
            self.zap_unexported(root)
            self.roots.put_root(root, shared=False)
            exported.root.value = None
        kvm.mmu_lock.write_unlock()
        self._cache.drain()


VARIANT = Mutant(
    name="cache-lock-inside-mmu-lock",
    title="un-export takes a mutex with mmu_lock held",
    parts=(InsideOut,),
    expects=("O5",),
    rule="exported_tdp_cache_lock is a mutex and comes before mmu_lock, a spinning lock",
    origin="RFC PATCH 35/42, the order of its locks; reference 2.1 rules 6 and 7, 1.5",
    story=(
        "iopf worker: holds exported_tdp_cache_lock, waits for mmu_lock",
        "closer of the TDP FD: holds mmu_lock, waits for exported_tdp_cache_lock, and may not "
        "sleep",
    ),
    confidence="V",
    tags=("locks", "export"),
    controlled=Case("explore/unexport-vs-io-fault"),
    threads=Case("quick"),
)
