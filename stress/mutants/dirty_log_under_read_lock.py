"""The dirty log is cleared with mmu_lock held for read."""

from mmu.parts import DirtyLog, Memslot, Table
from stress.mutants.case import Case, Mutant


class ProtectAsReader(DirtyLog):
    """Runs next to page faults."""

    def protect(self, slot: Memslot, bitmap: Table, pages: list[int]) -> set[int]:
        """Protect the pages again, as a reader."""
        self.kvm.mmu_lock.read_lock()
        taken = self.take_words(slot, bitmap, pages)
        self.kvm.mmu_lock.read_unlock()
        return taken

    def enable_log_dirty_pt_masked(self, slot: Memslot, pages: set[int]) -> None:
        """In every valid root."""
        for root in self.roots.each_yield_safe(shared=True, only_valid=True, as_id=slot.as_id):
            self.clear_dirty_pt_masked(root, slot, pages)


VARIANT = Mutant(
    name="dirty-log-under-read-lock",
    title="the dirty log is cleared with mmu_lock held for read only",
    parts=(ProtectAsReader,),
    expects=("O5",),
    rule=(
        "clear_dirty_pt_masked() changes SPTEs without compare-exchange, so it needs mmu_lock held "
        "for write"
    ),
    origin=(
        "shape of B40 (47b0c2e4c220), where a helper that needs mmu_lock held for write ran under "
        "the read lock; reference 2.1, 2.14"
    ),
    story=(
        "dirty logger: read_lock, reads a leaf",
        "vCPU: read_lock, changes it",
        "dirty logger: writes what it made of the old value",
    ),
    confidence="Vt",
    tags=("dirty", "locks"),
    controlled=Case("explore/dirty-log-vs-write"),
    threads=Case("quick", ("actors.dirty_log.enabled=true",)),
)
