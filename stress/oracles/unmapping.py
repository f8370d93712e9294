"""O5: part of a root is unmapped only while nobody can refill it."""

from __future__ import annotations

from mmu.paging.table import RootPage
from stress.oracles.base import Oracle


class UnmapOracle(Oracle):
    """Looks, at the end of every leaf zap of a range, at what keeps faults from mapping the same pages behind it. mmu_lock is
    still held for write then. A zap of a whole root only makes room: it is none that something has to be gone after."""

    rules = ("O5",)
    title = "a range is unmapped only inside an invalidation, or with slots_lock held"

    def zap_leafs_done(self, root: RootPage, start: int, end: int, yielded: bool) -> None:
        """The zap of [start, end) is over."""
        kvm = self.kvm
        if end - start > kvm.geometry.max_gfn or kvm.invalidation.in_progress.value or kvm.slots_lock.held():
            return
        kvm.warn(
            "O5",
            "unmap-without-invalidation",
            f"WARNING: gfns {start:#x}..{end - 1:#x} of {root.describe()} unmapped outside any invalidation, without slots_lock",
            "a live range is unmapped only while mmu_invalidate_in_progress is raised, else a fault maps the old page behind the zap",
            "kvm_unmap_gfn_range() lockdep_assert_once(); reference 2.10, B50, B72 (28cf49788107)",
            gfn=start,
        )
