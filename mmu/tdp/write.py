"""Writing SPTEs: atomic and exclusive setters, the bookkeeping of a change, and removal of tables
(reference 2.6)."""

from __future__ import annotations

from typing import Final

from mmu.kvm import Kvm
from mmu.memory.tlb import RemoteTlb
from mmu.paging.spte import (
    ADDR_MASK,
    HOST_WRITABLE,
    MMU_WRITABLE,
    PFN_SHIFT,
    REMOVED_SPTE,
    SPTE_A,
    SPTE_D,
    SPTE_MMIO,
    SPTE_PS,
    SPTE_R,
    SPTE_W,
    describe,
    pfn_of,
)
from mmu.paging.table import ShadowPage
from mmu.sync.lockdep import READ, WRITE
from mmu.tdp.iter import TdpIter

_RIGHTS = SPTE_W | MMU_WRITABLE | HOST_WRITABLE
_LEGAL_RIGHTS = frozenset({0, HOST_WRITABLE, HOST_WRITABLE | MMU_WRITABLE, _RIGHTS})
_BAD_RIGHTS = (
    "a leaf's rights do not fit together: writable needs MMU-writable, which needs host-writable"
)


class SpteWriter:
    """The only code that changes SPTEs, and the only place that knows what a change means."""

    STANDS_FOR: Final = (
        "arch/x86/kvm/mmu/tdp_mmu.c: tdp_mmu_set_spte_atomic(), handle_changed_spte()"
    )

    def __init__(self, kvm: Kvm, tlb: RemoteTlb) -> None:
        self.kvm = kvm
        self.tlb = tlb
        self._layout = kvm.layout
        self._present = kvm.layout.present
        self._shifts = kvm.geometry.shifts()
        self._unaligned = tuple((1 << shift) - 1 for shift in self._shifts)
        self._dirty = SPTE_D if kvm.layout.ad_bits else SPTE_W
        self._stable = (
            kvm.layout.present | SPTE_R | SPTE_W | (SPTE_A | SPTE_D if kvm.layout.ad_bits else 0)
        )
        """A leaf with all of these has nothing left that hardware or the lockless path could
        set."""
        self._dirtied = kvm.pfn_dirtied
        self._frames = kvm.config.frames
        self._clock = kvm.dirty_clock
        self._pages_4k = kvm.stat.pages_4k.local
        self._mmu_lock_local = kvm.mmu_lock.local
        self._probe = kvm.probe

    # Setters.

    def set_spte_atomic(self, sp: ShadowPage, index: int, gfn: int, old: int, new: int) -> bool:
        """tdp_mmu_set_spte_atomic(): compare-exchange under mmu_lock(read); false when somebody
        else was first."""
        if self._mmu_lock_local.mine.mode != READ:
            self.kvm.mmu_lock.assert_held_read()
        if old == REMOVED_SPTE:
            self._warn_frozen(sp, gfn, old, new, "changed by somebody who did not freeze it")
        if sp.spt.cmpxchg(index, old, new) != old:
            if self._probe.cmpxchg_lost is not None:
                self._probe.cmpxchg_lost(gfn)
            return False
        self.handle_changed_spte(sp, gfn, old, new, True)
        return True

    def set_spte(self, sp: ShadowPage, index: int, gfn: int, old: int, new: int) -> int:
        """tdp_mmu_set_spte(): the writer's setter, under mmu_lock(write); returns the value it
        replaced."""
        if self._mmu_lock_local.mine.mode != WRITE:
            self.kvm.mmu_lock.assert_held_write()
        if REMOVED_SPTE in (old, new):
            self._warn_frozen(sp, gfn, old, new, "met by an exclusive setter")
        stable = self._stable
        if old & stable != stable and self.has_volatile_bits(old, sp.level):
            old = sp.spt.xchg(index, new)
        else:
            sp.spt.store(index, new)
        self.handle_changed_spte(sp, gfn, old, new, False)
        return old

    def iter_set_spte_atomic(self, it: TdpIter, new: int) -> bool:
        """Atomic setter at an iterator; a lost race refreshes `it.old_spte`."""
        self._check_not_yielded(it)
        if self.set_spte_atomic(it.sp, it.index, it.gfn, it.old_spte, new):
            return True
        it.old_spte = it.sp.spt[it.index]
        return False

    def iter_set_spte(self, it: TdpIter, new: int) -> None:
        """Exclusive setter at an iterator."""
        self._check_not_yielded(it)
        it.old_spte = self.set_spte(it.sp, it.index, it.gfn, it.old_spte, new)

    def has_volatile_bits(self, spte: int, level: int) -> bool:
        """spte_has_volatile_bits(): whether the CPU or the lockless fault path can change this leaf
        outside mmu_lock."""
        return self._layout.has_volatile_bits(spte, level)

    def clear_spte_bits(self, it: TdpIter, mask: int) -> int:
        """tdp_mmu_clear_spte_bits(): take bits away from a leaf under mmu_lock(write), losing none
        that hardware sets meanwhile; returns the value before."""
        self._check_not_yielded(it)
        if self.has_volatile_bits(it.old_spte, it.level):
            return it.sp.spt.fetch_and(it.index, ~mask)
        it.sp.spt.store(it.index, it.old_spte & ~mask)
        return it.old_spte

    def zap_spte_atomic(self, it: TdpIter) -> bool:
        """tdp_mmu_zap_spte_atomic(): freeze the entry, flush what it mapped, then clear it; false
        when somebody else was first. While it is frozen faults retry and zappers leave it alone
        (B06)."""
        if not self.iter_set_spte_atomic(it, REMOVED_SPTE):
            return False
        if self._probe.point is not None:
            self._probe.point("P6")
        self.tlb.flush_range("zap-atomic", it.gfn, 1 << self._shifts[it.level])
        if self._probe.point is not None:
            self._probe.point("P6")
        it.sp.spt.store(it.index, 0)
        return True

    # What a change means.

    def handle_changed_spte(
        self, sp: ShadowPage, gfn: int, old: int, new: int, shared: bool
    ) -> None:
        """handle_changed_spte(): checks, event, statistics, and removal of the table that `old`
        pointed to."""
        level = sp.level
        present = self._present
        if level != 1 and gfn & self._unaligned[level]:
            self._warn_transition(sp, gfn, old, new, "gfn is not aligned to the level")
        if old and old & present:
            if level == 1 and not new & present:
                self._leaf_removed(sp, gfn, old, new, shared)
            else:
                self._changed_from_present(sp, gfn, level, old, new, shared)
            return
        if not new & present:
            self._changed_from_present(sp, gfn, level, old, new, shared)
            return
        changed = self._probe.spte_changed
        if changed is not None:
            changed(sp, gfn, level, old, new, shared)
        if level == 1 or new & SPTE_PS:
            rights = new & _RIGHTS
            if rights != _RIGHTS and rights not in _LEGAL_RIGHTS:
                self._warn_transition(sp, gfn, old, new, _BAD_RIGHTS)
            if level == 1:
                self._pages_4k.mine.n += 1
            else:
                self._check_huge(sp, gfn, level, old, new)
                self._count_leaf(level, 1)

    def _leaf_removed(self, sp: ShadowPage, gfn: int, old: int, new: int, shared: bool) -> None:
        """handle_changed_spte() for what a zap does most: a 4 KiB leaf goes."""
        probe = self._probe
        if probe.spte_changed is not None:
            probe.spte_changed(sp, gfn, 1, old, new, shared)
        if probe.spte_zapped is not None:
            probe.spte_zapped(sp, gfn, 1, old, new, shared)
        self._pages_4k.mine.n -= 1
        if old & self._dirty:
            pfn = (old & ADDR_MASK) >> PFN_SHIFT
            if shared:
                self.kvm.set_pfn_dirty(pfn)
            elif pfn < self._frames:
                # mmu_lock is held for write: nobody else reports now
                self._dirtied[pfn] = self._clock.value

    def _changed_from_present(
        self, sp: ShadowPage, gfn: int, level: int, old: int, new: int, shared: bool
    ) -> None:
        """The rest of handle_changed_spte(): anything but a new present entry where there was
        none."""
        layout = self._layout
        was_leaf, is_leaf = layout.is_leaf(old, level), layout.is_leaf(new, level)
        was_table, is_table = layout.is_table(old, level), layout.is_table(new, level)
        if was_leaf and is_leaf and (old ^ new) & ADDR_MASK:
            self._warn_transition(
                sp, gfn, old, new, "a leaf's frame changed without passing through non-present"
            )
        if old == new:
            return
        if was_table and self.removes_first():
            self._table_replaced(sp, gfn, old, new, shared)
        self._tell(sp, gfn, level, old, new, shared)
        if (
            not (was_leaf or was_table or is_leaf or is_table)
            and new != REMOVED_SPTE
            and not (old | new) & SPTE_MMIO
        ):
            self._warn_transition(
                sp,
                gfn,
                old,
                new,
                "non-present to another non-present value that is neither MMIO nor frozen",
            )
        if is_leaf:
            self._check_leaf(sp, gfn, old, new)
        if was_leaf != is_leaf:
            self._count_leaf(level, 1 if is_leaf else -1)
        if was_leaf and old & self._dirty and not (is_leaf and new & self._dirty):
            self._set_dirty(old, level)
        if was_table and not self.removes_first():
            self._table_replaced(sp, gfn, old, new, shared)

    def _tell(self, sp: ShadowPage, gfn: int, level: int, old: int, new: int, shared: bool) -> None:
        """An entry that was present, or frozen, has changed."""
        layout, probe = self._layout, self._probe
        if probe.spte_changed is not None:
            probe.spte_changed(sp, gfn, level, old, new, shared)
        if probe.spte_zapped is None or layout.is_table(new, level):
            return
        if layout.is_table(old, level) or (
            layout.is_leaf(old, level) and not layout.is_leaf(new, level)
        ):
            probe.spte_zapped(sp, gfn, level, old, new, shared)

    def removes_first(self) -> bool:
        """Whether a table that an entry has lost is taken apart before anybody is told of the entry
        (7.x)."""
        return False

    def _check_leaf(self, sp: ShadowPage, gfn: int, old: int, new: int) -> None:
        if new & _RIGHTS not in _LEGAL_RIGHTS:
            self._warn_transition(sp, gfn, old, new, _BAD_RIGHTS)
        if sp.level > 1:
            self._check_huge(sp, gfn, sp.level, old, new)

    def _table_replaced(self, sp: ShadowPage, gfn: int, old: int, new: int, shared: bool) -> None:
        """The entry pointed to a table: unless it still does, that table is removed."""
        if self._layout.is_table(new, sp.level):
            moved = (old ^ new) & ADDR_MASK
            how = (
                "went from one table to another without being removed in between"
                if moved
                else "changed under the table that it points to"
            )
            self._warn_transition(sp, gfn, old, new, f"an entry {how}")
        if (old ^ new) & (ADDR_MASK | self._present | SPTE_PS):
            self.handle_removed_pt(self.kvm.tables.at(old & ADDR_MASK), shared)

    def _set_dirty(self, spte: int, level: int) -> None:
        """kvm_set_pfn_dirty() for every frame of a leaf that was dirty and is not any more."""
        pfn = pfn_of(spte)
        if level == 1:
            self.kvm.set_pfn_dirty(pfn)
            return
        for each in range(pfn, pfn + (1 << self._shifts[level])):
            self.kvm.set_pfn_dirty(each)

    def _check_huge(self, sp: ShadowPage, gfn: int, level: int, old: int, new: int) -> None:
        """A huge leaf maps an aligned run of frames (reserved bits otherwise)."""
        if self._probe.huge_mapped is not None:
            self._probe.huge_mapped(sp, gfn, level, new)
        if new & (self._unaligned[level] << PFN_SHIFT):
            self._warn_transition(
                sp,
                gfn,
                old,
                new,
                "a huge leaf's frame is not aligned to its level (reserved bits are set)",
            )

    def link_sp(
        self,
        sp: ShadowPage,
        index: int,
        gfn: int,
        old: int,
        child: ShadowPage,
        *,
        shared: bool = True,
    ) -> bool:
        """tdp_mmu_link_sp(): publish a child table, by compare-exchange where others may write,
        then account for it."""
        new = self._layout.table(child.address)
        if not shared:
            self.set_spte(sp, index, gfn, old, new)
        elif not self.set_spte_atomic(sp, index, gfn, old, new):
            return False
        self.account_linked()
        return True

    def account_linked(self) -> None:
        """tdp_account_mmu_page(): after the page became visible, so the count may lag for a
        moment."""
        if self._probe.point is not None:
            self._probe.point("P5")
        self.kvm.stat.tdp_mmu_pages.add(1)

    def handle_removed_pt(self, sp: ShadowPage, shared: bool) -> None:
        """handle_removed_pt(): unlink a table, freeze or clear every entry in it, and have RCU free
        it."""
        kvm = self.kvm
        if self._probe.prepare_zap_page is not None:
            self._probe.prepare_zap_page(sp, shared)
        self.unlink_sp(sp, shared)
        step = 1 << self._shifts[sp.level]
        for index in range(kvm.geometry.entries):
            gfn = sp.gfn + index * step
            if shared:
                old = self._freeze_shared(sp, index)
            else:
                old = sp.spt[index]
                if not old & self._present:
                    continue
                if self.has_volatile_bits(old, sp.level):
                    old = sp.spt.xchg(index, REMOVED_SPTE)
                else:
                    sp.spt.store(index, REMOVED_SPTE)
            self.handle_changed_spte(sp, gfn, old, REMOVED_SPTE, shared)
        self.free_table(sp)

    def unlink_sp(self, sp: ShadowPage, shared: bool) -> None:  # noqa: ARG002 - who holds mmu_lock for write needs no second lock
        """tdp_mmu_unlink_sp(): off the page count, and off the list of possible huge pages if it is
        there."""
        kvm = self.kvm
        kvm.stat.tdp_mmu_pages.add(-1)
        if sp.nx_disallowed is not None:
            with kvm.tdp_mmu_pages_lock:
                kvm.possible_nx_huge_pages.untrack(sp)

    def free_table(self, sp: ShadowPage) -> None:
        """call_rcu(tdp_mmu_free_sp_rcu_callback): walkers may still be inside."""
        self.kvm.tables.retire(sp)

    def _freeze_shared(self, sp: ShadowPage, index: int) -> int:
        """Exchange an entry for the frozen value, spinning while another task has it frozen."""
        while True:
            old = sp.spt.xchg(index, REMOVED_SPTE)
            if old != REMOVED_SPTE:
                return old
            self.kvm.runtime.wait_until("frozen SPTE", lambda: sp.spt[index] != REMOVED_SPTE)

    def _count_leaf(self, level: int, amount: int) -> None:
        """kvm_update_page_stats()."""
        counter = self.kvm.stat.by_level[level]
        if counter is not None:
            counter.local.mine.n += amount

    def _check_not_yielded(self, it: TdpIter) -> None:
        if it.yielded:
            self.kvm.warn(
                "O7",
                "set-after-yield",
                "WARNING: SPTE written through an iterator that has yielded",
                "after a yield the iterator's SPTE and its snapshot are stale: go on with the next "
                "step",
                "WARN_ON_ONCE(iter->yielded); reference 2.5",
            )

    def _warn_frozen(self, sp: ShadowPage, gfn: int, old: int, new: int, how: str) -> None:
        self._warn_transition(sp, gfn, old, new, f"a frozen (REMOVED) entry was {how}")

    def _warn_transition(self, sp: ShadowPage, gfn: int, old: int, new: int, why: str) -> None:
        self.kvm.warn(
            "O7",
            "spte-transition",
            f"BUG: illegal SPTE change at gfn {gfn:#x} level {sp.level}: {why}",
            why,
            "handle_changed_spte(); reference 2.6",
            subject=why,
            extra=(
                (
                    "SPTE",
                    [
                        f"old {describe(old, self._layout, sp.level)}",
                        f"new {describe(new, self._layout, sp.level)}",
                    ],
                ),
            ),
        )
