"""A slot's leaves are zapped table by table, and tables that it shares are left out."""

from mmu.parts import Memslot, Zapper
from stress.mutants.case import Case, Mutant


class WholeTables(Zapper):
    """Compares the gfns of a table with the slot, not those of a leaf."""

    def zap_memslot_leafs(self, slot: Memslot) -> None:
        """Zap what lies in tables that are the slot's alone."""
        table = self.kvm.geometry.pages(2)
        kvm = self.kvm
        kvm.mmu_lock.write_lock()
        if self.zap_roots_leafs(
            slot.as_id, -(-slot.base_gfn // table) * table, slot.end_gfn // table * table
        ):
            self.tlb.flush_range("memslot-zap", slot.base_gfn, slot.npages)
        kvm.mmu_lock.write_unlock()


VARIANT = Mutant(
    name="slot-zap-by-table",
    title="the targeted zap of a memslot misses leaves in tables that the slot shares",
    parts=(WholeTables,),
    expects=("O6",),
    rule=(
        "when a memslot call returns, no leaf maps what it removed, wherever the slot begins and "
        "ends"
    ),
    origin=(
        "shape of B71 (58a20a9435aa): which pages belong to a slot was told inexactly, there among "
        "shadow pages"
    ),
    story=(
        "vCPU: maps a page of slot S, whose table covers more than S",
        "memslot worker: deletes S, zaps the tables inside S only",
        "vCPU or device: goes on using the page",
    ),
    confidence="Vt",
    tags=("memslots", "policy"),
    controlled=Case("explore/delete-vs-dma", ('vm.policy="slot-leaves"',)),
    threads=Case("quick", ('vm.policy="slot-leaves"',)),
)
