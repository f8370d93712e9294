"""O6 by inspection: when range_start has returned, nothing may map the pages of the range."""

from __future__ import annotations

from mmu.kvm import ADDRESS_SPACES
from mmu.memory.host import Region
from mmu.memory.memslots import Memslot
from mmu.paging.spte import describe
from mmu.paging.table import RootPage
from mmu.probe import override
from stress.observe.oracles.base import Oracle
from stress.observe.oracles.leaves import Leaf, leaves_in


class RangeOracle(Oracle):
    """Walks what the memslots say is behind the range, in every root, invalid ones too: their zap
    may still be under way, and uses the frames. The slots cannot change until range_end, and faults
    on the range are stale.

    A huge leaf may stick out of the range if the host's own page does: the host leaves such a page
    alone.
    """

    rules = ("O6",)
    title = "no leaf is left for a range of host pages when range_start returns"

    @override
    def range_started(self, region: Region, first: int, last: int, ns: int) -> None:
        slots = [
            slot
            for as_id in range(ADDRESS_SPACES)
            for slot in self.vm.memslots.peek(as_id).index.value[1]
            if slot.region is region
        ]
        self.kvm.rcu.read_lock()
        for slot in slots:
            origin = slot.base_gfn - (slot.hva(slot.base_gfn) - region.hva)
            start = max(slot.base_gfn, origin + first)
            end = min(slot.end_gfn, origin + last)
            if start < end:
                self._check(slot, start, end)
        self.kvm.rcu.read_unlock()

    def _check(self, slot: Memslot, start: int, end: int) -> None:
        for root in self.vm.roots.each_rcu():
            if root.role.as_id != slot.as_id:
                continue
            self.judged["O6"].add(1)
            for leaf in leaves_in(self.kvm, root, start, end):
                if not self._sticks_out(slot, leaf, start, end) and leaf.is_unchanged():
                    self._report(root, slot, leaf)
                    return

    def _sticks_out(self, slot: Memslot, leaf: Leaf, start: int, end: int) -> bool:
        """Whether the leaf maps a huge page of the host that is larger than the range."""
        pages = self.kvm.geometry.pages(leaf.level)
        if start <= leaf.gfn and leaf.gfn + pages <= end:
            return False
        gfn = max(start, leaf.gfn)
        return slot.region.levels[slot.hva(gfn) - slot.region.hva] >= leaf.level

    def _report(self, root: RootPage, slot: Memslot, leaf: Leaf) -> None:
        self.kvm.warn(
            "O6",
            "leaf-of-invalidated-range",
            f"BUG: invalidate_range_start() returns, but {root.describe()} still maps gfn "
            f"{leaf.gfn:#x} of {slot.describe()}",
            "when range_start has returned, no leaf of any root, valid or not, maps the pages of "
            "the range: the host frees them at once",
            "kvm_unmap_gfn_range(), kvm_tdp_mmu_unmap_gfn_range(); reference 2.10, B18, invariant "
            "I8",
            subject=str(root.role),
            extra=(("SPTE", [describe(leaf.spte, self.kvm.layout, leaf.level)]),),
            gfn=leaf.gfn,
        )
