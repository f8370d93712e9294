"""Huge pages: splitting them, eagerly or on a fault, and letting them come back (reference 2.6,
2.8, 2.12)."""

from __future__ import annotations

from typing import Final

from mmu.kvm import Kvm
from mmu.memory.memslots import Memslot
from mmu.memory.tlb import RemoteTlb
from mmu.paging.geometry import PG_LEVEL_4K
from mmu.paging.spte import PFN_SHIFT, SPTE_PS, SPTE_X, describe
from mmu.paging.table import RootPage, ShadowPage
from mmu.tdp.iter import TdpIter
from mmu.tdp.roots import Roots
from mmu.tdp.write import SpteWriter
from mmu.tdp.yielding import Yielding


class HugePages:
    """Splits huge leaves into tables and collapses tables that could be huge leaves."""

    STANDS_FOR: Final = (
        "arch/x86/kvm/mmu/tdp_mmu.c: tdp_mmu_split_huge_page(), kvm_tdp_mmu_zap_collapsible_sptes()"
    )

    def __init__(
        self, kvm: Kvm, roots: Roots, writer: SpteWriter, tlb: RemoteTlb, yielding: Yielding
    ) -> None:
        self.kvm = kvm
        self.roots = roots
        self.writer = writer
        self.tlb = tlb
        self.yielding = yielding

    # Splitting.

    def split_huge_page(
        self, sp: ShadowPage, index: int, gfn: int, huge: int, child: ShadowPage, *, shared: bool
    ) -> bool:
        """tdp_mmu_split_huge_page(): fill the unlinked child with smaller leaves of the same
        rights, then link it. No flush: what the entry translates to does not change."""
        counter = None
        if sp.level > PG_LEVEL_4K and self.kvm.layout.is_leaf(huge, sp.level):
            self._fill(child, huge, sp.level - 1)
            counter = self.kvm.stat.by_level[sp.level - 1]
        else:
            self._warn_not_huge(sp, gfn, huge)  # and link an empty table, as the kernel would
        if not self.writer.link_sp(sp, index, gfn, huge, child, shared=shared):
            return False
        if counter is not None:
            counter.add(self.kvm.geometry.entries)
        if self.kvm.probe.huge_page_split is not None:
            self.kvm.probe.huge_page_split(gfn, sp.level)
        return True

    def _fill(self, child: ShadowPage, huge: int, level: int) -> None:
        """The leaves of `level` that together map what the huge leaf maps."""
        pages = self.kvm.geometry.pages(level)
        smaller = self.make_huge_page_split_spte(huge, level)
        for position in range(self.kvm.geometry.entries):
            child.spt[position] = smaller + (position * pages << PFN_SHIFT)

    def _warn_not_huge(self, sp: ShadowPage, gfn: int, spte: int) -> None:
        self.kvm.warn(
            "O7",
            "split-of-no-huge-leaf",
            f"BUG: the entry for gfn {gfn:#x} of {sp.describe()} is to be split, and is no huge "
            "leaf",
            "only a present, huge leaf is split into a table of smaller ones; a walk that has lost "
            "its level meets others",
            "make_huge_page_split_spte() KVM_BUG_ON(); reference 2.6",
            subject=str(sp.level),
            extra=(("SPTE", [describe(spte, self.kvm.layout, sp.level)]),),
            gfn=gfn,
        )

    def make_huge_page_split_spte(self, huge: int, level: int) -> int:
        """make_huge_page_split_spte(): the first of the smaller leaves. The NX mitigation took X
        from the huge leaf only: a 4 KiB leaf has it again."""
        if level > PG_LEVEL_4K:
            return huge
        return huge & ~SPTE_PS | (0 if self.kvm.layout.is_access_tracked(huge) else SPTE_X)

    def try_split_huge_pages(self, slot: Memslot, start: int, end: int, *, shared: bool) -> None:
        """kvm_tdp_mmu_try_split_huge_pages(): down to 4 KiB in [start, end) of every valid root;
        mmu_lock is held."""
        self.kvm.mmu_lock.assert_held_mode(shared)
        for root in self.roots.each_yield_safe(shared, only_valid=True, as_id=slot.as_id):
            self._split_root(root, start, end, shared)

    def _split_root(self, root: RootPage, start: int, end: int, shared: bool) -> None:
        """tdp_mmu_split_huge_pages_root(): allocates with locks dropped when there is no page at
        hand."""
        kvm = self.kvm
        spare: ShadowPage | None = None
        kvm.rcu.read_lock()
        it = TdpIter(kvm, root, PG_LEVEL_4K + 1, start, end)
        while it.valid:
            if self.yielding.iter_cond_resched(it, False, shared):
                it.next_present()
                continue
            if not kvm.layout.is_leaf(it.old_spte, it.level):
                it.next_present()
                continue
            if spare is None:
                spare = self.yielding.allocate_unlocked(it, shared)
                it.next_present()  # the locks were dropped: the walk restarts at its goal
                continue
            spare.place(root, it.sp, it.index, it.gfn, it.level - 1)
            if self.split_huge_page(it.sp, it.index, it.gfn, it.old_spte, spare, shared=shared):
                spare = None
            else:
                it.old_spte = it.sp.spt[it.index]
                continue
            it.next_present()
        kvm.rcu.read_unlock()
        if spare is not None:
            kvm.tables.discard(spare)

    # Collapsing.

    def flush_replaced(self, gfn: int, level: int) -> None:
        """A fault put a huge leaf where a table was: partial walks through the table must go."""
        self.tlb.flush_range("huge-over-tables", gfn, self.kvm.geometry.pages(level))

    def zap_collapsible_sptes(self, slot: Memslot) -> None:
        """kvm_tdp_mmu_zap_collapsible_sptes(): after dirty logging went off, remove tables where a
        huge leaf could stand; mmu_lock is held for read."""
        self.kvm.mmu_lock.assert_held_read()
        for root in self.roots.each_yield_safe(shared=True, only_valid=True, as_id=slot.as_id):
            self._zap_collapsible_range(root, slot)

    def _zap_collapsible_range(self, root: RootPage, slot: Memslot) -> None:
        kvm = self.kvm
        kvm.rcu.read_lock()
        it = TdpIter(kvm, root, PG_LEVEL_4K + 1, slot.base_gfn, slot.end_gfn)
        while it.valid:
            if self.yielding.iter_cond_resched(it, False, shared=True):
                it.next_present()
                continue
            if self.is_collapsible(it, slot) and not self.writer.zap_spte_atomic(it):
                it.old_spte = it.sp.spt[it.index]
                continue
            it.next_present()
        kvm.rcu.read_unlock()

    def is_collapsible(self, it: TdpIter, slot: Memslot) -> bool:
        """Whether the table below this entry could be one leaf: slot and host allow it."""
        if (
            not self.kvm.layout.is_table(it.old_spte, it.level)
            or it.level > self.kvm.config.max_level
        ):
            return False
        if not slot.allows(it.gfn, it.level, self.kvm.geometry):
            return False
        return slot.region.levels[it.gfn - slot.origin] >= it.level
