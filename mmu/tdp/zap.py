"""Zapping: whole roots, leaves only, and kvm_mmu_zap_all_fast() with the exported-root leaf zap
(reference 2.5, 2.7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from mmu.kvm import ADDRESS_SPACES, Kvm
from mmu.memory.memslots import Memslot
from mmu.memory.requests import KVM_REQ_MMU_FREE_OBSOLETE_ROOTS, Requests
from mmu.memory.tlb import RemoteTlb
from mmu.paging.geometry import PG_LEVEL_1G, PG_LEVEL_4K
from mmu.paging.spte import SPTE_MMIO, SPTE_PS
from mmu.paging.table import RootPage, ShadowPage
from mmu.runtime import Cell
from mmu.sync.locks import Mutex
from mmu.tdp.iter import TdpIter
from mmu.tdp.roots import Roots
from mmu.tdp.write import SpteWriter
from mmu.tdp.yielding import Yielding

EVERYTHING = 1 << 62
"""Past every host page number."""
BATCH_ZAP_PAGES = 10
"""Shadow pages that kvm_zap_obsolete_pages() zaps before it may drop mmu_lock."""


class Importer(Protocol):
    """What a republish needs of an importer."""

    def switch_root(self, root: RootPage) -> bool:
        """Walk another root; may sleep; true acknowledges."""
        ...

    def revoke(self) -> None:
        """Walk none."""
        ...


class Export(Protocol):
    """What a zap needs of an exported TDP."""

    root: Cell[RootPage | None]
    bind_lock: Mutex

    def importers(self) -> Sequence[Importer]:
        """Who walks the root."""
        ...


class Exports(Protocol):
    """Where the exported TDPs are listed."""

    def all(self) -> Sequence[Export]:
        """What is exported now."""
        ...


class Zapper:
    """Removes mappings. Each method is one kernel function or one step of one, so that a variant
    can replace it."""

    STANDS_FOR: Final = (
        "arch/x86/kvm/mmu/mmu.c: kvm_mmu_zap_all_fast(); arch/x86/kvm/mmu/tdp_mmu.c: "
        "tdp_mmu_zap_root(), tdp_mmu_zap_leafs()"
    )

    def __init__(
        self,
        kvm: Kvm,
        roots: Roots,
        writer: SpteWriter,
        tlb: RemoteTlb,
        requests: Requests,
        yielding: Yielding,
        exports: Exports,
    ) -> None:
        self.kvm = kvm
        self.exports = exports
        self.yielding = yielding
        self.roots = roots
        self.writer = writer
        self.tlb = tlb
        self.requests = requests

    # What memslot updates ask for.

    def flush_shadow_memslot(self, slot: Memslot) -> None:  # noqa: ARG002 - zap-all is the ABI, whatever the slot
        """kvm_arch_flush_shadow_memslot(): a deleted or moved slot is unmapped by zapping
        everything (the ABI)."""
        self.zap_all_fast()

    def memslots_updated(self, generation: int) -> None:
        """kvm_mmu_invalidate_mmio_sptes(): when the generation that MMIO SPTEs keep wraps, ancient
        ones would match again, so all of them have to go; AS0's generations are even, AS1's odd."""
        mask = (1 << self.kvm.config.mmio_gen_bits) - 1
        if generation & mask & ~(ADDRESS_SPACES - 1) == 0:
            if self.kvm.probe.mmio_wrapped is not None:
                self.kvm.probe.mmio_wrapped(generation)
            self.zap_all_fast()
            self.zap_kept_mmio_sptes()

    def zap_kept_mmio_sptes(self) -> None:
        """A root that was kept valid, whether it is still exported or not, has kept its MMIO SPTEs
        through the leaf zap; at a wrap they have to go (the mend of R9)."""
        kvm = self.kvm
        kvm.mmu_lock.write_lock()
        kvm.rcu.read_lock()
        for root in self.roots.each_rcu():
            if not root.invalid.value:
                self._zap_mmio_sptes(root)
        kvm.rcu.read_unlock()
        kvm.mmu_lock.write_unlock()

    def _zap_mmio_sptes(self, root: RootPage) -> None:
        it = TdpIter(self.kvm, root, PG_LEVEL_4K, 0, self.kvm.geometry.max_gfn + 1)
        while it.valid:
            if it.old_spte & SPTE_MMIO:
                self.writer.iter_set_spte(it, 0)
            it.next()

    # kvm_mmu_zap_all_fast(), step by step.

    def zap_all_fast(self) -> None:
        """kvm_mmu_zap_all_fast() in its exact order; slots_lock must be held. On return no vCPU or
        importer can reach what was mapped before."""
        kvm = self.kvm
        kvm.slots_lock.assert_held()
        kvm.rcu.forbid_sleep("kvm_mmu_zap_all_fast")
        kvm.mmu_lock.write_lock()
        if kvm.probe.zap_all_fast is not None:
            kvm.probe.zap_all_fast(kvm.mmu_valid_gen.value)
        self.obsolete_roots()
        self.zap_exported_and_obsolete()
        kvm.mmu_lock.write_unlock()
        if kvm.probe.point is not None:
            kvm.probe.point("P9")
        self.zap_invalidated_roots()

    def obsolete_roots(self) -> None:
        """Steps 3 to 5: flip the generation, invalidate the roots, have every vCPU drop them; in
        one critical section."""
        self.toggle_valid_gen()
        invalidated = self.roots.invalidate_all_roots()
        if self.kvm.probe.point is not None:
            self.kvm.probe.point("P8")
        self.request_obsolete_roots(invalidated)

    def toggle_valid_gen(self) -> None:
        """mmu_valid_gen 0 <-> 1; only the shadow MMU looks at it."""
        self.kvm.mmu_valid_gen.store(self.kvm.mmu_valid_gen.value ^ 1)

    def request_obsolete_roots(self, invalidated: list[RootPage]) -> None:
        """kvm_make_all_cpus_request(KVM_REQ_MMU_FREE_OBSOLETE_ROOTS): in the same critical section
        as the invalidation."""
        self.requests.make_all_cpus_request(KVM_REQ_MMU_FREE_OBSOLETE_ROOTS)
        if self.kvm.probe.roots_kicked is not None:
            self.kvm.probe.roots_kicked(invalidated)

    def zap_exported_and_obsolete(self) -> None:
        """Steps 7 and 6: the exported roots go before mmu_lock may be dropped, in the critical
        section that has spared them (the mend of R22, whose order is the kernel's)."""
        self.zap_exported_roots()
        self.zap_obsolete_pages()

    def zap_obsolete_pages(self) -> None:
        """kvm_zap_obsolete_pages(), step 6: shadow pages of the old generation, oldest first. The
        flush is for lockless walkers of the shadow MMU."""
        kvm = self.kvm
        kvm.mmu_lock.assert_held_write()
        pages, generation = kvm.shadow_pages, kvm.mmu_valid_gen.value
        zapped = batch = 0
        while pages.is_oldest_obsolete(generation):
            if batch >= BATCH_ZAP_PAGES and self.break_obsolete_zap():
                batch = 0
                continue
            pages.zap_oldest()
            zapped, batch = zapped + 1, batch + 1
        if zapped:
            self.tlb.flush("obsolete-pages")
            if kvm.probe.shadow_pages_zapped is not None:
                kvm.probe.shadow_pages_zapped(zapped)

    def break_obsolete_zap(self) -> bool:
        """cond_resched_rwlock_write() between two batches; returns whether mmu_lock was dropped."""
        kvm = self.kvm
        if kvm.probe.point is not None:
            kvm.probe.point("P8b")
        dropped = kvm.mmu_lock.cond_resched(shared=False)
        if dropped and kvm.probe.obsolete_zap_broken is not None:
            kvm.probe.obsolete_zap_broken()
        return dropped

    def zap_exported_roots(self) -> None:
        """kvm_tdp_mmu_zap_exported_roots(), the seed: every leaf of every exported root, without
        yielding."""
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
        before = self.kvm.stat.leaves()
        if self.zap_exported_leafs(root):
            self.flush_exported()
        self.exported_zapped(root, before)

    def zap_exported_leafs(self, root: RootPage) -> bool:
        """All leaves in one go, mmu_lock and RCU held throughout (R13); whether a flush is owed."""
        return self.zap_leafs(root, 0, self.kvm.geometry.max_gfn + 1, can_yield=False, flush=False)

    def exported_zapped(self, root: RootPage, before: int) -> None:
        """Tell how many leaves the exported root has lost."""
        if self.kvm.probe.exported_zapped is not None:
            self.kvm.probe.exported_zapped(root, max(0, before - self.kvm.stat.leaves()))

    def flush_exported(self) -> None:
        """kvm_flush_remote_tlbs() after an exported root's leaves are gone: vCPUs and importers."""
        self.tlb.flush("exported-zap")

    def zap_invalidated_roots(self) -> None:
        """kvm_tdp_mmu_zap_invalidated_roots(): under mmu_lock(read); puts the TDP MMU's reference
        after each zap."""
        kvm = self.kvm
        shared = self.zaps_shared()
        kvm.mmu_lock.lock(shared)
        for root in self.roots.each_yield_safe(shared):
            if root.scheduled.value:
                root.scheduled.value = False
                self.zap_scheduled_root(root)
        kvm.mmu_lock.unlock(shared)

    def zaps_shared(self) -> bool:
        """Whether invalidated roots are zapped under mmu_lock(read)."""
        return True

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
        shared = self.zaps_shared()
        self.zap_root(root, shared=shared)
        root.zapped.value = True
        if kvm.probe.root_zapped is not None:
            kvm.probe.root_zapped(root)
        if kvm.probe.point is not None:
            kvm.probe.point("P10")
        self.roots.put_root(root, shared=shared)

    def stop(self) -> None:
        """Kernels that zap by a workqueue destroy it here."""

    # Whole roots.

    def zap_all(self) -> None:
        """kvm_mmu_zap_all(): mm release and VM destroy. No vCPU can run any more, so nothing is
        flushed for them."""
        kvm = self.kvm
        kvm.mmu_lock.write_lock()
        while kvm.shadow_pages.count():
            kvm.shadow_pages.zap_oldest()
            kvm.mmu_lock.cond_resched(shared=False)
        for root in self.roots.each_yield_safe(shared=False):
            self.zap_root(root, shared=False, flush=self.is_walked(root))
        kvm.mmu_lock.write_unlock()

    def is_walked(self, root: RootPage) -> bool:
        """Whether a device may walk the root: that vCPUs cannot run does not stop it, so it has to
        be told before the memory goes (the mend of R12)."""
        return root.exported.value

    def zap_root(self, root: RootPage, shared: bool, *, flush: bool = False) -> None:
        """tdp_mmu_zap_root(): two passes, so that no recursive removal is larger than 1 GiB.

        With `flush` the root may be in use: what was removed is flushed before the RCU section that
        keeps it alive is left, at every yield too. Without it nothing is: that is for roots that
        everybody must load anew.
        """
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
        for level in self.zap_levels(root):
            self._zap_root_pass(root, shared, level, flush)
        if flush:
            self.tlb.flush("zap-all")
        kvm.rcu.read_unlock()

    def zap_levels(self, root: RootPage) -> tuple[int, ...]:
        """The level of each pass: 1 GiB, then all of it (1b6043e8e584)."""
        return (min(PG_LEVEL_1G, root.level), root.level)

    def _zap_root_pass(self, root: RootPage, shared: bool, zap_level: int, flush: bool) -> None:
        """__tdp_mmu_zap_root(): clear every present entry at or below `zap_level`."""
        it = TdpIter(self.kvm, root, zap_level, 0, self.kvm.geometry.max_gfn + 1)
        while it.valid:
            if self.yielding.iter_cond_resched(it, flush, shared):
                it.next_present()
                continue
            while self.is_zapped_by_pass(it, zap_level):
                if not shared:
                    self.writer.iter_set_spte(it, 0)
                    break
                if self.writer.iter_set_spte_atomic(it, 0):
                    break
            it.next_present()
        self.yielding.section_end(it, can_yield=True)

    def is_zapped_by_pass(self, it: TdpIter, zap_level: int) -> bool:
        """Whether a pass clears the entry: every present one, however much it maps (B75); asked
        again after a lost race."""
        return bool(it.old_spte & self.kvm.layout.present) and it.level <= zap_level

    # Leaves only.

    def zap_leafs(
        self, root: RootPage, start: int, end: int, *, can_yield: bool, flush: bool
    ) -> bool:
        """tdp_mmu_zap_leafs(): clear every 4K..1G leaf in [start, end); tables stay.

        Returns whether a remote flush is needed before mmu_lock is released; `flush` is what an
        earlier call returned.
        """
        kvm = self.kvm
        kvm.mmu_lock.assert_held_write()
        present = kvm.layout.present
        set_spte = self.writer.set_spte
        kvm.rcu.read_lock()
        it = TdpIter(kvm, root, PG_LEVEL_4K, start, min(end, kvm.geometry.max_gfn + 1))
        step = it.next_present
        owes = self.owes_flush(root)
        yielded = False
        while it.valid:
            if can_yield and self.yielding.iter_cond_resched(it, flush, False):
                flush, yielded = False, True
                step()
                continue
            spte = it.old_spte
            if spte & present and (it.level == 1 or spte & SPTE_PS):
                set_spte(it.sp, it.index, it.gfn, spte, 0)
                flush = flush or owes
            step()
        self.yielding.section_end(it, can_yield=can_yield)
        if kvm.probe.zap_leafs_done is not None:
            kvm.probe.zap_leafs_done(root, start, end, yielded)
        kvm.rcu.read_unlock()
        return flush

    def owes_flush(self, root: RootPage) -> bool:  # noqa: ARG002 - from 6.9 on it depends on the root
        """Whether a leaf that was zapped in this root has to be flushed."""
        return True

    def zap_roots_leafs(self, as_id: int, start: int, end: int, *, flush: bool = False) -> bool:
        """kvm_tdp_mmu_zap_leafs(): in every root of the address space, invalid ones too, with
        yielding; mmu_lock is held for write. Returns whether a flush is owed; each root is handed
        what was owed before it (B02, B11)."""
        for root in self.roots.each_yield_safe(shared=False, as_id=as_id):
            flush = self.zap_leafs(root, start, end, can_yield=True, flush=flush)
        return flush

    def zap_memslot_leafs(self, slot: Memslot) -> None:
        """kvm_mmu_zap_memslot_leafs(): the slot's leaves only, in every root (aa8d1f48d353);
        flushed before the lock goes."""
        kvm = self.kvm
        kvm.slots_lock.assert_held()
        kvm.mmu_lock.write_lock()
        if self.unmap_memslot(slot):
            self.tlb.flush_range("memslot-zap", slot.base_gfn, slot.npages)
        kvm.mmu_lock.write_unlock()

    def unmap_memslot(self, slot: Memslot) -> bool:
        """kvm_unmap_gfn_range() of a whole slot; whether a flush is owed."""
        return self.zap_roots_leafs(slot.as_id, slot.base_gfn, slot.end_gfn)

    def zap_gfn_range(self, start: int, end: int) -> None:
        """kvm_zap_gfn_range(): an attribute of the range changed; all faults are held off while the
        zap yields (B50)."""
        kvm = self.kvm
        kvm.mmu_lock.write_lock()
        kvm.invalidation.begin(0, EVERYTHING)
        flush = False
        for as_id in range(ADDRESS_SPACES):
            flush = self.zap_roots_leafs(as_id, start, end, flush=flush)
        if flush:
            # a huge leaf may stick out of the range: hardware drops one that the range touches
            self.tlb.flush_range("gfn-range", start, end - start)
        kvm.invalidation.end()
        kvm.mmu_lock.write_unlock()

    def zap_sp(self, sp: ShadowPage) -> bool:
        """kvm_tdp_mmu_zap_sp(): remove one table by clearing its parent's entry; mmu_lock is held
        for write."""
        parent = sp.parent
        if parent is None:
            return False
        spte = parent.spt[sp.parent_index]
        if not spte & self.kvm.layout.present:
            return False
        self.writer.set_spte(parent, sp.parent_index, sp.gfn, spte, 0)
        return True
