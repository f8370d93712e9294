"""Page faults: from an access that found nothing to a leaf in the root, with every check on the way (reference 2.8)."""

from __future__ import annotations

from enum import IntEnum

from mmu.kvm import Kvm
from mmu.memory.host import HostMemory
from mmu.memory.memslots import KVM_MEM_READONLY, KVM_MEMSLOT_INVALID, Memslot, Memslots
from mmu.paging.geometry import Geometry
from mmu.paging.spte import ADDR_MASK, PFN_SHIFT, REMOVED_SPTE, SPTE_PS, SPTE_W
from mmu.paging.table import RootPage, ShadowPage
from mmu.sync.locks import RwHold
from mmu.sync.rcu import Reader
from mmu.tdp.write import SpteWriter


class RetPf(IntEnum):
    """What a fault handler tells its caller (RET_PF_*)."""

    CONTINUE = 0
    RETRY = 1
    EMULATE = 2
    INVALID = 3
    FIXED = 4
    SPURIOUS = 5


CONTINUE, RETRY, EMULATE, FIXED, SPURIOUS = RetPf.CONTINUE, RetPf.RETRY, RetPf.EMULATE, RetPf.FIXED, RetPf.SPURIOUS


class Fault:
    """struct kvm_page_fault: what was accessed, and what was found out so far.

    A vCPU has one and renews it at every exit, so nothing is carried over from an earlier fault (R8); anybody else
    makes a fresh one. `hold`, `reader` and `srcu_reader` are the records of the thread that handles it, if
    it knows them.
    """

    gfn = 0
    write = False
    present = False
    as_id = 0
    goal_level = 1
    slot: Memslot | None = None
    pfn = 0
    host_writable = False
    mmu_seq = 0
    hold: RwHold | None = None
    reader: Reader | None = None
    srcu_reader: Reader | None = None


_SPECIAL = KVM_MEMSLOT_INVALID | KVM_MEM_READONLY


class PageCache:
    """mmu_page_header_cache and mmu_shadow_page_cache: table pages set aside before locks are taken. One task's own,
    or guarded by its owner's mutex."""

    __slots__ = ("_kvm", "pages", "short", "target")

    def __init__(self, kvm: Kvm) -> None:
        self._kvm = kvm
        self.target = kvm.geometry.levels
        self.pages: list[ShadowPage] = []
        self.short = True
        """Whether pages were taken since the last top-up."""

    def topup(self) -> None:
        """mmu_topup_memory_caches(): enough pages for one walk from the root. May sleep."""
        if self.short:
            self._kvm.sync.might_sleep("mmu_topup_memory_caches")
            while len(self.pages) < self.target:
                self.pages.append(self._kvm.tables.allocate())
            self.short = False

    def take(self) -> ShadowPage:
        """kvm_mmu_memory_cache_alloc(): one page, without sleeping."""
        self.short = True
        return self.pages.pop()

    def drain(self) -> None:
        """mmu_free_memory_caches()."""
        self.short = True
        while self.pages:
            self._kvm.tables.discard(self.pages.pop())


Descent = tuple[tuple[tuple[int, int], ...], int]
"""The (level, shift) steps of a walk down to a goal level, and the shift of the goal level itself."""


def _descents(geometry: Geometry) -> tuple[Descent, ...]:
    """The descent to every goal level, indexed by level; that to level 0 is unused."""
    shifts = geometry.shifts()
    return tuple(
        (tuple((level, shifts[level]) for level in range(geometry.levels, goal, -1)), shifts[goal]) for goal in range(geometry.levels + 1)
    )


class FaultHandler:
    """Maps what a vCPU or a device wants to access."""

    def __init__(self, kvm: Kvm, memslots: Memslots, host: HostMemory, writer: SpteWriter) -> None:
        self.kvm = kvm
        self.memslots = memslots
        self.host = host
        self.writer = writer
        layout = kvm.layout
        self._present = layout.present
        self._tables = kvm.tables.by_spte
        self._rcu = kvm.rcu
        self._seq = kvm.mmu_invalidate_seq
        self._in_progress = kvm.mmu_invalidate_in_progress
        self._shifts = kvm.geometry.shifts()
        self._mask = kvm.geometry.mask
        self._probe = kvm.probe
        self._mmu_lock = kvm.mmu_lock
        self._ad_bits = kvm.config.ad_bits
        self._descents = _descents(kvm.geometry)
        self._leaf_read_only = layout.leaf(0, 1, writable=False, host_writable=False)
        self._leaf_writable = layout.leaf(0, 1, writable=True, host_writable=True)

    # The vCPU's path.

    def page_fault(self, root: RootPage, cache: PageCache, fault: Fault, vcpu: object) -> RetPf:
        """kvm_tdp_mmu_page_fault(): the caller holds SRCU for read and a reference on `root`."""
        if fault.write if fault.present else not self._ad_bits:
            fast = self.fast_page_fault(root, fault)
            if fast is not None:
                return fast
        if cache.short:
            cache.topup()
        result = self.faultin_pfn(fault)
        if result is not CONTINUE:
            return result
        probe = self._probe
        if probe.point is not None:
            probe.point("P2")
        mmu_lock = self._mmu_lock
        mmu_lock.read_lock(fault.hold)
        if self.is_page_fault_stale(root, fault):
            if probe.fault_stale is not None:
                probe.fault_stale(vcpu, fault.gfn, "root" if root.invalid.value else "notifier")
            result = RETRY
        else:
            result = self.map(root, cache, fault)
        mmu_lock.read_unlock(fault.hold)
        return result

    def faultin_pfn(self, fault: Fault) -> RetPf:
        """kvm_faultin_pfn(): slot, sequence snapshot, then the host's frame. May sleep."""
        slot = self.memslots.gfn_to_memslot(fault.as_id, fault.gfn, fault.srcu_reader)
        fault.slot = slot
        fault.mmu_seq = self._seq.value
        if self._probe.point is not None:
            self._probe.point("P1")
        if slot is None:
            return EMULATE
        if slot.flags & _SPECIAL:
            if slot.flags & KVM_MEMSLOT_INVALID:
                return RETRY
            if fault.write:
                return EMULATE
        region = slot.region
        index = fault.gfn - slot.base_gfn
        fault.pfn = region.ptes[index] or self.host.fault_in(region, index)
        fault.host_writable = slot.host_writable
        return CONTINUE

    def is_page_fault_stale(self, root: RootPage, fault: Fault) -> bool:
        """is_page_fault_stale(): under mmu_lock - the root was invalidated, or the pfn may be out of date."""
        if fault.hold is None or not fault.hold.mode:
            self._mmu_lock.assert_held()
        return root.invalid.value or self._seq.value != fault.mmu_seq or self._in_progress.value != 0

    def map(self, root: RootPage, cache: PageCache, fault: Fault) -> RetPf:
        """kvm_tdp_mmu_map(): walk to the goal level under RCU, linking tables on the way, and install the leaf.

        The walk is the iterator's walk over [gfn, gfn + 1): it only ever steps down.
        """
        if root.invalid.value:
            self._warn_obsolete(root, fault)
        rcu = self._rcu
        reader = fault.reader
        rcu.read_lock(reader)
        gfn = fault.gfn
        mask = self._mask
        tables = self._tables
        sp: ShadowPage = root
        descent, leaf_shift = self._descents[fault.goal_level]
        for level, shift in descent:
            spte = sp.spt[(gfn >> shift) & mask]
            try:
                sp = tables[spte]
            except KeyError:
                child = self._link_child(sp, spte, cache, fault, level)
                if child is None:
                    rcu.read_unlock(reader)
                    return RETRY
                sp = child
        index = (gfn >> leaf_shift) & mask
        result = self.map_handle_target_level(sp, index, fault, sp.spt[index])
        rcu.read_unlock(reader)
        return result

    def map_handle_target_level(self, sp: ShadowPage, index: int, fault: Fault, old: int) -> RetPf:
        """tdp_mmu_map_handle_target_level(): build the leaf and install it by compare-exchange."""
        if old == REMOVED_SPTE:
            return self._met_frozen(fault)
        new = self.make_spte(fault)
        denied = fault.write and not new & SPTE_W
        if new == old:
            return EMULATE if denied else SPURIOUS
        if self._probe.point is not None:
            self._probe.point("P4")
        if not self.writer.set_spte_atomic(sp, index, fault.gfn, old, new):
            return RETRY
        return EMULATE if denied else FIXED

    def make_spte(self, fault: Fault) -> int:
        """make_spte(): the leaf for this fault; writable as soon as the host and the slot allow it."""
        base = self._leaf_writable if fault.host_writable else self._leaf_read_only
        return base | fault.pfn << PFN_SHIFT

    # The lockless path.

    def fast_page_fault(self, root: RootPage, fault: Fault) -> RetPf | None:
        """fast_page_fault(): under RCU only; None when the slow path must decide."""
        rcu = self.kvm.rcu
        rcu.read_lock()
        result = self._fast_page_fault(root, fault)
        rcu.read_unlock()
        return result

    def _fast_page_fault(self, root: RootPage, fault: Fault) -> RetPf | None:
        sp, _, spte = self.get_last_sptep(root, fault.gfn)
        if not spte & self._present or not (sp.level == 1 or spte & SPTE_PS):
            return None
        if not fault.write or spte & SPTE_W:
            return SPURIOUS
        return None

    def get_last_sptep(self, root: RootPage, gfn: int) -> tuple[ShadowPage, int, int]:
        """kvm_tdp_mmu_fast_pf_get_last_sptep(): the lowest entry of a lockless walk, as (table, index, value)."""
        self.kvm.rcu.assert_held("sptep")
        sp: ShadowPage = root
        level = root.level
        while True:
            index = (gfn >> self._shifts[level]) & self._mask
            spte = sp.spt[index]
            if not spte & self._present or level == 1 or spte & SPTE_PS:
                return sp, index, spte
            sp = self.kvm.tables.at(spte & ADDR_MASK)
            level -= 1

    # Pieces.

    def _link_child(self, sp: ShadowPage, old: int, cache: PageCache, fault: Fault, level: int) -> ShadowPage | None:
        """tdp_mmu_link_sp() with a page from the cache; None when another task froze or changed the entry first."""
        if old == REMOVED_SPTE:
            self._met_frozen(fault)
            return None
        shift = self._shifts[level]
        index = (fault.gfn >> shift) & self._mask
        gfn = (fault.gfn >> shift) << shift
        child = cache.take()
        assert sp.root is not None
        child.place(sp.root, sp, index, gfn, level - 1)
        if self._probe.point is not None:
            self._probe.point("P4")
        if self.writer.link_sp(sp, index, gfn, old, child):
            return child
        self.kvm.tables.discard(child)
        return None

    def _warn_obsolete(self, root: RootPage, fault: Fault) -> None:
        self.kvm.warn(
            "O12",
            "map-in-obsolete-root",
            f"BUG: a fault maps gfn {fault.gfn:#x} in obsolete {root.describe()}",
            "after mmu_lock is taken, a fault whose root was invalidated must be repeated",
            "is_page_fault_stale(), reference 2.8, B36 (a955cad84cda)",
            gfn=fault.gfn,
        )

    def _met_frozen(self, fault: Fault) -> RetPf:
        """Somebody is busy with the entry: let the access fault again (B41)."""
        if self._probe.frozen_met is not None:
            self._probe.frozen_met(fault.gfn)
        return RETRY
