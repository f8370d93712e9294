"""An MMU notifier walks the list of roots without references, and yields inside."""

from mmu.parts import Zapper
from stress.mutants.case import Case, Mutant


class PlainWalk(Zapper):
    """for_each_tdp_mmu_root() around a zap that may drop mmu_lock."""

    def zap_roots_leafs(self, as_id: int, start: int, end: int, *, flush: bool = False) -> bool:
        """Relies on mmu_lock, which the zap gives up."""
        for root in self.roots.each():
            if root.role.as_id == as_id:
                flush = self.zap_leafs(root, start, end, can_yield=True, flush=flush)
        return flush


VARIANT = Mutant(
    name="notifier-walks-unpinned-roots",
    title="an MMU notifier yields while it stands on a root that it does not hold",
    parts=(PlainWalk,),
    expects=("O4", "O2"),
    rule=(
        "whoever may drop mmu_lock inside a walk of the roots holds a reference on the one it "
        "stands on"
    ),
    origin="B17 (7533377215b6)",
    story=(
        "memslot worker: invalidates root R, which only the TDP MMU itself still holds; waits for "
        "mmu_lock to zap it",
        "host: reclaims pages: stands on R, and drops mmu_lock for the memslot worker",
        "memslot worker: zaps R and puts its last reference: R leaves the list, and is freed after "
        "a grace period",
        "host: goes on in R, and follows its link",
    ),
    confidence="Vt",
    tags=("roots", "yield", "notifier"),
    controlled=Case("explore/discard-vs-obsolete-root"),
    threads=None,
    threads_cannot=(
        "the root has to be zapped and dropped for good within one yield of the notifier: no run "
        "of ten seconds shows it"
    ),
)
