"""O15: a leaf zap that did not yield leaves no leaf behind."""

from __future__ import annotations

from mmu.paging.spte import describe
from mmu.paging.table import RootPage
from mmu.tdp.iter import TdpIter
from stress.oracles.base import Oracle


class WalkOracle(Oracle):
    """Walks the zapped range again, with mmu_lock still held for write: what is there now was there all the time."""

    rules = ("O15",)
    title = "a zap visits every entry that was present during the whole of it"

    def zap_leafs_done(self, root: RootPage, start: int, end: int, yielded: bool) -> None:
        """The zap of [start, end) is over."""
        if yielded:
            return  # faults may have mapped something behind it, legally
        layout = self.kvm.layout
        it = TdpIter(self.kvm, root, 1, start, min(end, self.kvm.geometry.max_gfn + 1))
        while it.valid:
            if layout.is_leaf(it.old_spte, it.level):
                self.kvm.warn(
                    "O15",
                    "leaf-not-visited",
                    f"BUG: a zap of gfns {start:#x}..{end - 1:#x} of {root.describe()} has left gfn {it.gfn:#x} level {it.level} mapped",
                    "an SPTE that is present during a whole walk is visited by it",
                    "tdp_mmu_zap_leafs(), tdp_iter; reference 2.4, B16",
                    subject=str(it.level),
                    extra=(("SPTE", [describe(it.old_spte, layout)]),),
                    gfn=it.gfn,
                )
                return
            it.next_present()
