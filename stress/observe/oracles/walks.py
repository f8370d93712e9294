"""O15: a leaf zap that did not yield leaves no leaf behind."""

from __future__ import annotations

from mmu.paging.spte import describe
from mmu.paging.table import RootPage
from mmu.probe import override
from stress.observe.oracles.base import Oracle
from stress.observe.oracles.leaves import leaves_in


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
        left = next(leaves_in(self.kvm, root, start, end), None)
        if left is None:
            return
        self.kvm.warn(
            "O15",
            "leaf-not-visited",
            f"BUG: a zap of gfns {start:#x}..{end - 1:#x} of {root.describe()} has left gfn "
            f"{left.gfn:#x} level {left.level} mapped",
            "an SPTE that is present during a whole walk is visited by it",
            "tdp_mmu_zap_leafs(), tdp_iter; reference 2.4, B16",
            subject=str(left.level),
            extra=(("SPTE", [describe(left.spte, self.kvm.layout, left.level)]),),
            gfn=left.gfn,
        )
