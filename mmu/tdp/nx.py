"""The NX huge page mitigation: its knob, and the worker that gives huge pages back (reference 2.12,
iTLB multihit)."""

from __future__ import annotations

from typing import Final

from mmu.kvm import Kvm
from mmu.memory.memslots import Memslot, Memslots
from mmu.memory.tlb import RemoteTlb
from mmu.paging.table import ShadowPage
from mmu.tdp.zap import Zapper


class NxHugePages:
    """While the knob is on no executable huge leaf may exist: a fetch gets small pages."""

    STANDS_FOR: Final = "arch/x86/kvm/mmu/mmu.c: set_nx_huge_pages(), kvm_recover_nx_huge_pages()"

    def __init__(self, kvm: Kvm, memslots: Memslots, zapper: Zapper, tlb: RemoteTlb) -> None:
        self.kvm = kvm
        self.memslots = memslots
        self.zapper = zapper
        self.tlb = tlb

    def set_nx_huge_pages(self, on: bool) -> None:
        """set_nx_huge_pages(): write the knob, then zap everything, so that faults rebuild it under
        the new policy."""
        kvm = self.kvm
        with kvm.kvm_lock:
            if kvm.nx_huge_pages.value == on:
                return
            if kvm.probe.nx_toggle_begin is not None:
                kvm.probe.nx_toggle_begin(on)
            kvm.nx_huge_pages.value = on
            if kvm.probe.point is not None:
                kvm.probe.point("P19")
            with kvm.slots_lock:
                self.zapper.zap_all_fast()
            if kvm.probe.nx_toggle_end is not None:
                kvm.probe.nx_toggle_end(on)

    def recover(self) -> int:
        """kvm_recover_nx_huge_pages(): remove a share of the tables that only the mitigation keeps,
        so that huge leaves can come back; returns how many were dealt with."""
        kvm = self.kvm
        if not kvm.config.nx_recovery_ratio:
            return 0
        token = kvm.srcu.read_lock()
        kvm.mmu_lock.write_lock()
        kvm.rcu.read_lock()
        left = done = -(-kvm.stat.nx_lpage_splits.value // kvm.config.nx_recovery_ratio)
        flush = False
        while left and kvm.possible_nx_huge_pages.pages():
            left -= 1
            flush |= self.recover_page(kvm.possible_nx_huge_pages.pages()[0])
            if kvm.mmu_lock.needbreak():
                flush = self.settle(flush)
                kvm.rcu.read_unlock()
                kvm.mmu_lock.cond_resched(shared=False)
                kvm.rcu.read_lock()
        self.settle(flush)
        kvm.rcu.read_unlock()
        kvm.mmu_lock.write_unlock()
        kvm.srcu.read_unlock(token)
        return done - left

    def recover_page(self, sp: ShadowPage) -> bool:
        """One page: zap it, or only unaccount it where dirty logging needs it small; whether a
        flush is owed."""
        self._check_disallowed(sp, True)
        slot = self.slot_of(sp) if self.is_any_slot_logging() else None
        if slot is not None and slot.dirty_bitmap is not None:
            with self.kvm.tdp_mmu_pages_lock:
                self.kvm.possible_nx_huge_pages.remove(sp)
            self._check_disallowed(sp, False)
            return False
        if self.zapper.zap_sp(sp):
            self._check_disallowed(sp, False)
            return True
        self.kvm.warn(
            "O9",
            "nx-page-not-linked",
            f"WARNING: {sp.describe()} is on possible_nx_huge_pages but its parent's entry is not "
            "present",
            "a page leaves the list when it is unlinked",
            "kvm_tdp_mmu_zap_sp() WARN; reference 2.12, invariant I14",
        )
        with self.kvm.tdp_mmu_pages_lock:
            self.kvm.possible_nx_huge_pages.untrack(sp)
        return False

    def _check_disallowed(self, sp: ShadowPage, wanted: bool) -> None:
        """nx_huge_page_disallowed is set while a page is on the list, and cleared when it is dealt
        with."""
        flag = sp.nx_disallowed
        if (flag is not None and flag.value) == wanted:
            return
        self.kvm.warn(
            "O9",
            "nx-page-flag",
            f"WARNING: {sp.describe()} is {'on' if wanted else 'dealt with by'} the NX recovery's "
            f"list, and its nx_huge_page_disallowed is {'clear' if wanted else 'set'}",
            "the list holds the pages whose flag is set, and the flag goes with the page",
            "kvm_recover_nx_huge_pages() WARN_ON_ONCE(!sp->nx_huge_page_disallowed); reference "
            "2.12, invariant I14",
            subject="set" if wanted else "clear",
        )

    def settle(self, flush: bool) -> bool:
        """The flush that is owed, inside the RCU section that keeps the removed tables alive (B03);
        nothing is owed after."""
        if flush:
            self.tlb.flush("nx-recovery")
        return False

    def slot_of(self, sp: ShadowPage) -> Memslot | None:
        """The slot of the page. There may be none: a leaf-only zap leaves the tables of a deleted
        slot behind (the mend of R11: that is no reason to warn)."""
        return self.memslot_of(sp)

    def memslot_of(self, sp: ShadowPage) -> Memslot | None:
        """__gfn_to_memslot(kvm_memslots_for_spte_role()): in the page's own address space (B30)."""
        assert sp.root is not None
        return self.memslots.gfn_to_memslot(sp.root.role.as_id, sp.gfn)

    def is_any_slot_logging(self) -> bool:
        """nr_memslots_dirty_logging != 0."""
        return any(
            slot.dirty_bitmap is not None
            for as_id in (0, 1)
            for slot in self.memslots.active(as_id).index.value[1]
        )
