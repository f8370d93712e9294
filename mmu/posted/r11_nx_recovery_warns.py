"""R11: tables of a deleted memslot confuse the NX recovery worker."""

from mmu.memory.memslots import Memslot
from mmu.numbers.defects import titled
from mmu.paging.table import ShadowPage
from mmu.tdp.nx import NxHugePages
from mmu.variant import Variant


class SlotExpected(NxHugePages):
    """The worker takes for granted that a slot covers every page on the list."""

    def slot_of(self, sp: ShadowPage) -> Memslot | None:
        """WARN_ON_ONCE(!slot)."""
        slot = super().slot_of(sp)
        if slot is None:
            self.kvm.warn(
                "O9",
                "nx-recovery-no-slot",
                f"WARNING: no memslot covers {sp.describe()}, which is on possible_nx_huge_pages",
                "the recovery worker takes for granted that a memslot covers every page on the "
                "list, and looks it up",
                "kvm_recover_nx_huge_pages() WARN_ON_ONCE(!slot); reference 1.11 R11 (tables of "
                "deleted slots), B30 (address spaces)",
                gfn=sp.gfn,
            )
        return slot


VARIANT = Variant(
    name="r11-nx-recovery-warns",
    title=titled("R11"),
    parts=(SlotExpected,),
    expects=("O9",),
    rule="what a leaf-only zap leaves behind must not be taken for memory of a live slot",
    origin="reference 1.11 R11, kvm_recover_nx_huge_pages() with the seed",
    story=(
        "vCPU: fetches from a huge page under the mitigation: a table on possible_nx_huge_pages",
        "memslot worker: deletes the slot: leaves go, the table stays on the list",
        "recovery worker: another slot logs dirty pages, so it looks for this table's slot, and "
        "finds none",
    ),
)
