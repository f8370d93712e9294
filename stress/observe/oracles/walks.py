"""O15: a leaf zap that did not yield leaves no leaf behind."""

from __future__ import annotations

from mmu.paging.spte import ADDR_MASK, describe
from mmu.paging.table import RootPage, ShadowPage
from mmu.probe import override
from stress.observe.oracles.base import Oracle


class WalkOracle(Oracle):
    """Walks the zapped range again, with mmu_lock still held for write: what is there now was there
    all the time."""

    rules = ("O15",)
    title = "a zap visits every entry that was present during the whole of it"

    @override
    def zap_leafs_done(self, root: RootPage, start: int, end: int, yielded: bool) -> None:
        if yielded:
            return  # faults may have mapped something behind it, legally
        self.judged["O15"].add(1)
        left = self._leaf_in(root, start, end)
        if left is None:
            return
        gfn, level, spte = left
        self.kvm.warn(
            "O15",
            "leaf-not-visited",
            f"BUG: a zap of gfns {start:#x}..{end - 1:#x} of {root.describe()} has left gfn "
            f"{gfn:#x} level {level} mapped",
            "an SPTE that is present during a whole walk is visited by it",
            "tdp_mmu_zap_leafs(), tdp_iter; reference 2.4, B16",
            subject=str(level),
            extra=(("SPTE", [describe(spte, self.kvm.layout, level)]),),
            gfn=gfn,
        )

    def _leaf_in(self, sp: ShadowPage, start: int, end: int) -> tuple[int, int, int] | None:
        """Any leaf below `sp` that overlaps [start, end), found without the iterator whose work is
        judged."""
        layout, step, spt = self.kvm.layout, self.kvm.geometry.pages(sp.level), sp.spt
        present = layout.present
        first = max(0, (start - sp.gfn) // step)
        last = min(len(spt), -(-(end - sp.gfn) // step))
        for index in [index for index in range(first, last) if spt[index] & present]:
            spte = spt[index]
            if layout.is_leaf(spte, sp.level):
                return sp.gfn + index * step, sp.level, spte
            if layout.is_table(spte, sp.level):
                child = self.kvm.tables.at(spte & ADDR_MASK)
                # not round in a circle
                found = self._leaf_in(child, start, end) if child.level < sp.level else None
                if found is not None:
                    return found
        return None
