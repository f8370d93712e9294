"""R22: the exported roots are zapped after kvm_zap_obsolete_pages(), which may drop mmu_lock."""

from mmu.numbers.defects import titled
from mmu.tdp.zap import Zapper
from mmu.variant import Variant


class ObsoletePagesFirst(Zapper):
    """kvm_mmu_zap_all_fast() as posted."""

    def zap_exported_and_obsolete(self) -> None:
        """Steps 6 and 7: the seed's hunk stands after the call that may drop mmu_lock."""
        self.zap_obsolete_pages()
        self.zap_exported_roots()


VARIANT = Variant(
    name="r22-exported-zap-after-break",
    title=titled("R22"),
    parts=(ObsoletePagesFirst,),
    expects=("O6", "O14"),
    rule=(
        "a root that invalidation spares is zapped in the same critical section: if it is "
        "un-exported in between, both pass it over"
    ),
    origin="reference 1.11 R22, RFC PATCH 36/42 (the seed) and kvm_zap_obsolete_pages()",
    story=(
        "vCPU: ran a nested guest: more than 10 shadow pages",
        "memslot worker: deletes a slot: spares the exported root, then zaps 10 shadow pages and "
        "drops mmu_lock, for which the exporter waits",
        "exporter: un-exports the root; its own zap yields to the memslot worker",
        "memslot worker: zaps exported roots: there is none; returns, the slot still mapped in a "
        "valid root",
    ),
)
