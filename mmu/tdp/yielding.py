"""Yielding in the middle of a walk, and how long walks go without it (reference 2.5)."""

from __future__ import annotations

from typing import Final

from mmu.kvm import Kvm
from mmu.memory.tlb import RemoteTlb
from mmu.paging.table import ShadowPage
from mmu.tdp.iter import TdpIter


class Yielding:
    """tdp_mmu_iter_cond_resched() and its companions. A walk's *section* is what it does between
    two yields."""

    STANDS_FOR: Final = "arch/x86/kvm/mmu/tdp_mmu.c: tdp_mmu_iter_cond_resched()"

    def __init__(self, kvm: Kvm, tlb: RemoteTlb) -> None:
        self.kvm = kvm
        self.tlb = tlb

    def iter_cond_resched(self, it: TdpIter, flush: bool, shared: bool) -> bool:
        """tdp_mmu_iter_cond_resched(): yield when mmu_lock is contended, flushing first if
        something is owed.

        On true the caller must go to the next step without touching the iterator's SPTE.
        """
        kvm = self.kvm
        kvm.rcu.assert_held("sptep")
        if it.yielded or it.gfn > it.next_last_level_gfn:
            self._warn_yield(it)
        if self.must_advance(it):
            return False
        if not kvm.mmu_lock.needbreak():
            return False
        if flush:
            self.tlb.flush("yield")
        self.section_end(it, can_yield=True)
        kvm.rcu.read_unlock()
        if kvm.probe.point is not None:
            kvm.probe.point("P7")
        kvm.mmu_lock.cond_resched(shared)
        kvm.rcu.read_lock()
        if kvm.probe.zap_yielded is not None:
            kvm.probe.zap_yielded(it.root, it.yielded_gfn, it.next_last_level_gfn)
        it.began = kvm.runtime.now()
        it.yielded = True
        return True

    def must_advance(self, it: TdpIter) -> bool:
        """The forward-progress guard (B07): no yield before the walk has got anywhere since the
        last one."""
        return it.next_last_level_gfn == it.yielded_gfn

    def section_end(self, it: TdpIter, *, can_yield: bool) -> None:
        """Tell how long the walk went without yielding: entries visited, and time inside one RCU
        read section."""
        if self.kvm.probe.walk_section is not None:
            self.kvm.probe.walk_section(it.steps, self.kvm.runtime.now() - it.began, can_yield)
        it.steps = 0

    def allocate_unlocked(self, it: TdpIter, shared: bool) -> ShadowPage:
        """tdp_mmu_alloc_sp_for_split(): leave RCU and mmu_lock, allocate with sleeping, come back;
        the walk has yielded."""
        kvm = self.kvm
        kvm.rcu.read_unlock()
        kvm.mmu_lock.unlock(shared)
        kvm.sync.might_sleep("tdp_mmu_alloc_sp_for_split")
        page = kvm.tables.allocate()
        kvm.mmu_lock.lock(shared)
        kvm.rcu.read_lock()
        it.yielded = True
        return page

    def _warn_yield(self, it: TdpIter) -> None:
        why = "it has yielded already" if it.yielded else "it stands behind its goal"
        self.kvm.warn(
            "O15",
            "bad-yield",
            f"WARNING: an iterator is asked to yield although {why}",
            "after a yield the walk restarts at the goal: a yield without a step in between would "
            "lose its place",
            "tdp_mmu_iter_cond_resched() WARN_ON_ONCE; reference 2.5",
            subject=why,
        )
