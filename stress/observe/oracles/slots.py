"""O6 by inspection: when a memslot call has removed a slot, nothing may map it."""

from __future__ import annotations

from mmu.memory.memslots import Memslot
from mmu.paging.spte import describe
from mmu.paging.table import RootPage
from mmu.probe import override
from mmu.tdp.iter import TdpIter
from stress.observe.oracles.base import Oracle


class SlotOracle(Oracle):
    """Walks the deleted or moved slot's old range in every root before slots_lock is released."""

    rules = ("O6",)
    title = "no leaf is left for a deleted or moved slot when the memslot call returns"

    @override
    def memslot_gone(self, slot: Memslot) -> None:
        self._check_shadow_pages(slot)
        self.kvm.rcu.read_lock()
        for root in self.vm.roots.each_rcu():
            if root.role.as_id == slot.as_id:
                self._check(root, slot)
        self.kvm.rcu.read_unlock()

    def _check_shadow_pages(self, slot: Memslot) -> None:
        kvm = self.kvm
        if kvm.shadow_pages.is_oldest_obsolete(kvm.mmu_valid_gen.value):
            kvm.warn(
                "O6",
                "obsolete-shadow-page",
                f"BUG: {slot.describe()} is gone, but shadow pages of the old generation are left",
                "kvm_mmu_zap_all_fast() leaves no obsolete shadow page: there are two generations, "
                "so one that is left becomes valid again at the next flip",
                "kvm_zap_obsolete_pages(), reference 2.7 step 6",
                subject="shadow",
            )

    def _check(self, root: RootPage, slot: Memslot) -> None:
        self.judged["O6"].add(1)
        layout = self.kvm.layout
        it = TdpIter(self.kvm, root, 1, slot.base_gfn, slot.end_gfn)
        while it.valid:
            if layout.is_leaf(it.old_spte, it.level):
                self.kvm.warn(
                    "O6",
                    "leaf-of-deleted-slot",
                    f"BUG: {slot.describe()} is gone, but {root.describe()} still maps gfn "
                    f"{it.gfn:#x}",
                    "when a memslot call returns, no present leaf may map what it removed",
                    "kvm_set_memslot(), reference 2.9, invariant I8",
                    subject=str(root.role),
                    extra=(("SPTE", [describe(it.old_spte, layout, it.level)]),),
                    gfn=it.gfn,
                )
                return
            it.next_present()
