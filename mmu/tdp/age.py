"""Ageing: which guest memory has been used, for the host's reclaim (reference 2.10)."""

from __future__ import annotations

from typing import Final

from mmu.kvm import Kvm
from mmu.memory.memslots import Memslot
from mmu.paging.geometry import PG_LEVEL_4K
from mmu.paging.spte import SPTE_A
from mmu.tdp.iter import TdpIter
from mmu.tdp.roots import Roots
from mmu.tdp.write import SpteWriter


class Ageing:
    """Walks leaves under mmu_lock(write), without yielding."""

    STANDS_FOR: Final = (
        "arch/x86/kvm/mmu/tdp_mmu.c: kvm_tdp_mmu_age_gfn_range(), kvm_tdp_mmu_test_age_gfn()"
    )

    def __init__(self, kvm: Kvm, roots: Roots, writer: SpteWriter) -> None:
        self.kvm = kvm
        self.roots = roots
        self.writer = writer

    def age_gfn_range(self, slot: Memslot, start: int, end: int) -> bool:
        """kvm_tdp_mmu_age_gfn_range(): make every young leaf in [start, end) old; whether there was
        one. No flush here."""
        return self._visit_young(slot, start, end, age=True)

    def test_age_gfn(self, slot: Memslot, start: int, end: int) -> bool:
        """kvm_tdp_mmu_test_age_gfn(): whether any leaf in [start, end) is young."""
        return self._visit_young(slot, start, end, age=False)

    def age_leaf(self, it: TdpIter) -> None:
        """age_gfn_range() on one leaf: clear A, or take all its rights, so that the next access is
        noticed."""
        layout = self.kvm.layout
        if layout.ad_bits:
            old = self.writer.clear_spte_bits(it, SPTE_A)
        else:
            old = it.sp.spt.xchg(it.index, layout.mark_for_access_track(it.old_spte))
        self.writer.handle_changed_spte(
            it.sp, it.gfn, old, layout.mark_for_access_track(old), False
        )

    def _visit_young(self, slot: Memslot, start: int, end: int, *, age: bool) -> bool:
        kvm, layout = self.kvm, self.kvm.layout
        kvm.mmu_lock.assert_held_write()
        young = False
        kvm.rcu.read_lock()
        for root in self.roots.each():
            it = TdpIter(kvm, root, PG_LEVEL_4K, start, end)
            while root.role.as_id == slot.as_id and it.valid:
                if layout.is_leaf(it.old_spte, it.level) and layout.is_accessed(it.old_spte):
                    young = True
                    if age:
                        self.age_leaf(it)
                it.next_present()
        kvm.rcu.read_unlock()
        return young
