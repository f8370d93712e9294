"""An importer's invalidate callback takes a mutex."""

from mmu.parts import KvmHwpt
from stress.mutants.case import Case, Mutant


class SleepyCallback(KvmHwpt):
    """Serialises against attach and detach."""

    def invalidate(self, gfn: int, pages: int) -> None:
        """With the mutex that those hold."""
        with self.fd.exported.bind_lock:
            super().invalidate(gfn, pages)


VARIANT = Mutant(
    name="importer-sleeps-in-callback",
    title="an importer's invalidate callback takes a mutex",
    parts=(SleepyCallback,),
    expects=("O5",),
    rule="importers are called under mmu_lock and spinlocks: they may neither sleep nor call KVM",
    origin="reference 1.4, 2.1 rules 6 and 7 (patch 42)",
    story=(
        "memslot worker: holds mmu_lock for write, notifies the importer, waits for its mutex",
        "device: holds the mutex while it is detached, which waits for mmu_lock",
    ),
    confidence="V",
    tags=("locks", "export"),
    controlled=Case("explore/delete-vs-dma"),
    threads=Case("quick"),
)
