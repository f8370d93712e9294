"""Zapping: whole roots, leaves only, and kvm_mmu_zap_all_fast() with the exported-root leaf zap (reference 2.5, 2.7)."""

from __future__ import annotations

from mmu.kvm import Kvm
from mmu.memory.memslots import Memslot
from mmu.memory.requests import KVM_REQ_MMU_FREE_OBSOLETE_ROOTS, Requests
from mmu.memory.tlb import RemoteTlb
from mmu.paging.geometry import PG_LEVEL_1G, PG_LEVEL_4K
from mmu.paging.spte import SPTE_PS
from mmu.paging.table import RootPage
from mmu.tdp.iter import TdpIter
from mmu.tdp.roots import Roots
from mmu.tdp.write import SpteWriter


class Zapper:
    """Removes mappings. Each method is one kernel function or one step of one, so that a variant can replace it."""

    def __init__(self, kvm: Kvm, roots: Roots, writer: SpteWriter, tlb: RemoteTlb, requests: Requests) -> None:
        self.kvm = kvm
        self.roots = roots
        self.writer = writer
        self.tlb = tlb
        self.requests = requests

    def flush_shadow_memslot(self, slot: Memslot) -> None:  # noqa: ARG002 - zap-all is the ABI, whatever the slot
        """kvm_arch_flush_shadow_memslot(): a deleted or moved slot is unmapped by zapping everything (the ABI)."""
        self.zap_all_fast()

    # kvm_mmu_zap_all_fast(), step by step.

    def zap_all_fast(self) -> None:
        """kvm_mmu_zap_all_fast() in its exact order; slots_lock must be held. On return no vCPU or importer can reach
        what was mapped before."""
        kvm = self.kvm
        kvm.slots_lock.assert_held()
        kvm.mmu_lock.write_lock()
        if kvm.probe.zap_all_fast is not None:
            kvm.probe.zap_all_fast(kvm.mmu_valid_gen.value)
        self.obsolete_roots()
        self.zap_exported_roots()
        kvm.mmu_lock.write_unlock()
        if kvm.probe.point is not None:
            kvm.probe.point("P9")
        self.zap_invalidated_roots()

    def obsolete_roots(self) -> None:
        """Steps 3 to 5: flip the generation, invalidate the roots, have every vCPU drop them; in one critical section."""
        self.toggle_valid_gen()
        invalidated = self.roots.invalidate_all_roots()
        if self.kvm.probe.point is not None:
            self.kvm.probe.point("P8")
        self.request_obsolete_roots(invalidated)

    def toggle_valid_gen(self) -> None:
        """mmu_valid_gen 0 <-> 1; only the shadow MMU looks at it."""
        self.kvm.mmu_valid_gen.store(self.kvm.mmu_valid_gen.value ^ 1)

    def request_obsolete_roots(self, invalidated: list[RootPage]) -> None:
        """kvm_make_all_cpus_request(KVM_REQ_MMU_FREE_OBSOLETE_ROOTS): in the same critical section as the invalidation."""
        self.requests.make_all_cpus_request(KVM_REQ_MMU_FREE_OBSOLETE_ROOTS)
        if self.kvm.probe.roots_kicked is not None:
            self.kvm.probe.roots_kicked(invalidated)

    def zap_exported_roots(self) -> None:
        """kvm_tdp_mmu_zap_exported_roots(), the seed: every leaf of every exported root, without yielding."""
        kvm = self.kvm
        kvm.mmu_lock.assert_held_write()
        if not kvm.config.have_exported_tdp:
            return
        kvm.rcu.read_lock()
        for root in self.roots.each_rcu():
            if root.exported.value:
                self.zap_exported_root(root)
        kvm.rcu.read_unlock()

    def zap_exported_root(self, root: RootPage) -> None:
        """One exported root: zap all its leaves, flush if there were any."""
        before = self.kvm.stat.pages_4k.value
        flush = self.zap_leafs(root, 0, self.kvm.geometry.max_gfn + 1, can_yield=False, flush=False)
        if flush:
            self.flush_exported()
        if self.kvm.probe.exported_zapped is not None:
            self.kvm.probe.exported_zapped(root, before - self.kvm.stat.pages_4k.value)

    def flush_exported(self) -> None:
        """kvm_flush_remote_tlbs() after an exported root's leaves are gone: vCPUs and importers."""
        self.tlb.flush("exported-zap")

    def zap_invalidated_roots(self) -> None:
        """kvm_tdp_mmu_zap_invalidated_roots(): under mmu_lock(read); puts the TDP MMU's reference after each zap."""
        kvm = self.kvm
        kvm.mmu_lock.read_lock()
        for root in self.roots.each_yield_safe(shared=True):
            if root.scheduled.value:
                root.scheduled.value = False
                self.zap_scheduled_root(root)
        kvm.mmu_lock.read_unlock()

    def zap_scheduled_root(self, root: RootPage) -> None:
        """Zap one invalidated root, then drop the reference that came with it."""
        kvm = self.kvm
        if not root.invalid.value:
            kvm.warn(
                "O12",
                "scheduled-but-valid",
                f"BUG: {root.describe()} scheduled for zap but valid",
                "only an invalid root is zapped this way: vCPUs are not flushed for it",
                "kvm_tdp_mmu_zap_invalidated_roots() KVM_BUG_ON; reference 2.7",
            )
        self.zap_root(root, shared=True)
        root.zapped.value = True
        if kvm.probe.root_zapped is not None:
            kvm.probe.root_zapped(root)
        if kvm.probe.point is not None:
            kvm.probe.point("P10")
        self.roots.put_root(root, shared=True)

    # Whole roots.

    def zap_all(self) -> None:
        """kvm_tdp_mmu_zap_all(): mm release and VM destroy; no flush, because no vCPU can run any more."""
        kvm = self.kvm
        kvm.mmu_lock.write_lock()
        for root in self.roots.each_yield_safe(shared=False):
            self.zap_root(root, shared=False)
        kvm.mmu_lock.write_unlock()

    def zap_root(self, root: RootPage, shared: bool) -> None:
        """tdp_mmu_zap_root(): two passes, so that no recursive removal is larger than 1 GiB. No flush: the caller knows."""
        kvm = self.kvm
        if root.refcount.read() == 0:
            kvm.warn(
                "O4",
                "zap-of-dead-root",
                f"WARNING: {root.describe()} zapped although nobody holds it",
                "the caller of a zap that can yield must hold a reference on the root",
                "tdp_mmu_zap_root() WARN_ON_ONCE(!refcount_read()); reference 2.7",
            )
        kvm.mmu_lock.assert_held_mode(shared)
        kvm.rcu.read_lock()
        self._zap_root_pass(root, shared, min(PG_LEVEL_1G, root.level))
        self._zap_root_pass(root, shared, root.level)
        kvm.rcu.read_unlock()

    def _zap_root_pass(self, root: RootPage, shared: bool, zap_level: int) -> None:
        """__tdp_mmu_zap_root(): clear every present entry at or below `zap_level`."""
        present = self.kvm.layout.present
        it = TdpIter(self.kvm, root, zap_level, 0, self.kvm.geometry.max_gfn + 1)
        while it.valid:
            if self.iter_cond_resched(it, False, shared):
                it.next_present()
                continue
            while it.old_spte & present and it.level <= zap_level:
                if not shared:
                    self.writer.iter_set_spte(it, 0)
                    break
                if self.writer.iter_set_spte_atomic(it, 0):
                    break
            it.next_present()

    # Leaves only.

    def zap_leafs(self, root: RootPage, start: int, end: int, *, can_yield: bool, flush: bool) -> bool:
        """tdp_mmu_zap_leafs(): clear every 4K..1G leaf in [start, end); tables stay.

        Returns whether a remote flush is needed before mmu_lock is released; `flush` is what an earlier call returned.
        """
        kvm = self.kvm
        kvm.mmu_lock.assert_held_write()
        present = kvm.layout.present
        set_spte = self.writer.set_spte
        kvm.rcu.read_lock()
        it = TdpIter(kvm, root, PG_LEVEL_4K, start, min(end, kvm.geometry.max_gfn + 1))
        step = it.next_present
        while it.valid:
            if can_yield and self.iter_cond_resched(it, flush, False):
                flush = False
                step()
                continue
            spte = it.old_spte
            if spte & present and (it.level == 1 or spte & SPTE_PS):
                set_spte(it.sp, it.index, it.gfn, spte, 0)
                flush = True
            step()
        kvm.rcu.read_unlock()
        return flush

    def iter_cond_resched(self, it: TdpIter, flush: bool, shared: bool) -> bool:
        """tdp_mmu_iter_cond_resched(): yield when mmu_lock is contended, flushing first if something is owed.

        On true the caller must go to the next step without touching the iterator's SPTE.
        """
        kvm = self.kvm
        if it.yielded or it.gfn > it.next_last_level_gfn:
            self._warn_yield(it)
        if it.next_last_level_gfn == it.yielded_gfn:
            return False
        if not kvm.mmu_lock.needbreak():
            return False
        if flush:
            self.tlb.flush("yield")
        kvm.rcu.read_unlock()
        if kvm.probe.point is not None:
            kvm.probe.point("P7")
        kvm.mmu_lock.cond_resched(shared)
        kvm.rcu.read_lock()
        if kvm.probe.zap_yielded is not None:
            kvm.probe.zap_yielded()
        it.yielded = True
        return True

    def _warn_yield(self, it: TdpIter) -> None:
        why = "it has yielded already" if it.yielded else "it stands behind its goal"
        self.kvm.warn(
            "O15",
            "bad-yield",
            f"WARNING: an iterator is asked to yield although {why}",
            "after a yield the walk restarts at the goal: a yield without a step in between would lose its place",
            "tdp_mmu_iter_cond_resched() WARN_ON_ONCE; reference 2.5",
            subject=why,
        )
