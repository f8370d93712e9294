"""Page faults: from an access that found nothing to a leaf in the root, with every check on the way
(reference 2.8)."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from mmu.kvm import Invalidation, Kvm
from mmu.memory.host import HostMemory, Region
from mmu.memory.memslots import (
    GEN_UPDATE_IN_PROGRESS,
    KVM_MEM_READONLY,
    KVM_MEMSLOT_INVALID,
    Memslot,
    Memslots,
)
from mmu.paging.geometry import PG_LEVEL_4K, Geometry
from mmu.paging.spte import (
    ADDR_MASK,
    MMU_WRITABLE,
    PFN_SHIFT,
    REMOVED_SPTE,
    SPTE_PS,
    SPTE_R,
    SPTE_W,
    SPTE_X,
)
from mmu.paging.table import RootPage, ShadowPage
from mmu.sync.locks import RwHold
from mmu.sync.rcu import RcuReader
from mmu.tdp.fault_rules import (
    warn_cache_empty,
    warn_huge_logged,
    warn_level,
    warn_obsolete,
    warn_offset,
)
from mmu.tdp.huge import HugePages
from mmu.tdp.write import SpteWriter

if TYPE_CHECKING:
    from mmu.machine.vcpu import Vcpu


class RetPf(IntEnum):
    """What a fault handler tells its caller (RET_PF_*)."""

    CONTINUE = 0
    RETRY = 1
    EMULATE = 2
    INVALID = 3
    FIXED = 4
    SPURIOUS = 5


CONTINUE, RETRY, EMULATE, FIXED, SPURIOUS = (
    RetPf.CONTINUE,
    RetPf.RETRY,
    RetPf.EMULATE,
    RetPf.FIXED,
    RetPf.SPURIOUS,
)
INVALID = RetPf.INVALID


class Fault:
    """struct kvm_page_fault: what was accessed, and what was found out so far.

    A vCPU has one and renews it at every exit, so nothing is carried over from an earlier fault
    (R8); anybody else makes a fresh one. `goal_level` is the level to map at, `req_level` what host
    and slot would have allowed, `nx_workaround` the NX huge page policy as it was when the fault
    began. `nowait` forbids to wait for the host (FOLL_NOWAIT), `fixing` is the gfn that the
    lockless path is making writable just now. `hold`, `reader` and `srcu_reader` are the records of
    the thread that handles it, if it knows them.
    """

    gfn = 0
    write = False
    fetch = False
    present = False
    nowait = False
    as_id = 0
    goal_level = PG_LEVEL_4K
    req_level = PG_LEVEL_4K
    nx_workaround = False
    huge_page_disallowed = False
    slot: Memslot | None = None
    pfn = 0
    host_writable = False
    mmu_seq = 0
    fixing = -1
    hold: RwHold | None = None
    reader: RcuReader | None = None
    srcu_reader: RcuReader | None = None


NO_SLOT = -1
"""KVM_PFN_NOSLOT: no memslot covers the gfn."""

_SPECIAL = KVM_MEMSLOT_INVALID | KVM_MEM_READONLY


class PageCache:
    """mmu_page_header_cache and mmu_shadow_page_cache: table pages set aside before locks are
    taken. One task's own, or guarded by its owner's mutex."""

    __slots__ = ("_kvm", "pages", "short", "target")

    def __init__(self, kvm: Kvm, walks: int = 1) -> None:
        self._kvm = kvm
        self.target = walks * kvm.geometry.levels
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
        if not self.pages:
            warn_cache_empty(self._kvm)
            return self._kvm.tables.allocate()
        return self.pages.pop()

    def drain(self) -> None:
        """mmu_free_memory_caches()."""
        self.short = True
        while self.pages:
            self._kvm.tables.discard(self.pages.pop())


Descent = tuple[tuple[tuple[int, int], ...], int]
"""The (level, shift) steps of a walk down to a goal level, and the shift of the goal level
itself."""


def _descents(geometry: Geometry) -> tuple[Descent, ...]:
    """The descent to every goal level, indexed by level; that to level 0 is unused."""
    shifts = geometry.shifts()
    return tuple(
        (tuple((level, shifts[level]) for level in range(geometry.levels, goal, -1)), shifts[goal])
        for goal in range(geometry.levels + 1)
    )


def _replaced_retry(invalidation: Invalidation) -> Callable[[int, int], bool] | None:
    """The `retry` of a variant, None for the model's own: every fault makes that comparison, so
    it is done in line."""
    own = type(invalidation).retry is Invalidation.retry
    return None if own else invalidation.retry


class FaultHandler:
    """Maps what a vCPU or a device wants to access."""

    STANDS_FOR: Final = (
        "arch/x86/kvm/mmu/mmu.c: kvm_tdp_mmu_page_fault(), fast_page_fault(); "
        "arch/x86/kvm/mmu/tdp_mmu.c: kvm_tdp_mmu_map()"
    )

    def __init__(
        self, kvm: Kvm, memslots: Memslots, host: HostMemory, writer: SpteWriter, huge: HugePages
    ) -> None:
        self.kvm = kvm
        self.memslots = memslots
        self.host = host
        self.writer = writer
        self.huge = huge
        self.layout = layout = kvm.layout
        self._present = layout.present
        self._tables = kvm.tables.by_spte
        self._rcu = kvm.rcu
        self._invalidation = kvm.invalidation
        self._retry = _replaced_retry(kvm.invalidation)
        self._seq = kvm.invalidation.seq
        self._in_progress = kvm.invalidation.in_progress
        self._shifts = kvm.geometry.shifts()
        self._mask = kvm.geometry.mask
        self._probe = kvm.probe
        self._mmu_lock = kvm.mmu_lock
        self._ad_bits = kvm.config.ad_bits
        self._max_level = min(kvm.config.max_level, kvm.geometry.levels)
        self._gen_mask = (1 << kvm.config.mmio_gen_bits) - 1
        self._descents = _descents(kvm.geometry)
        self._leaf_read_only = layout.leaf(0, 1, writable=False, host_writable=False)
        self._leaf_writable = layout.leaf(0, 1, writable=True, host_writable=True)

    # The vCPU's path.

    def page_fault(self, root: RootPage, cache: PageCache, fault: Fault, vcpu: Vcpu) -> RetPf:
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
        """kvm_faultin_pfn(): slot, sequence snapshot, then the host's frame. May sleep. Without a
        slot it goes on, to install an MMIO SPTE."""
        slot = self.find_slot(fault)
        fault.slot = slot
        self.take_seq(fault)
        if self._probe.point is not None:
            self._probe.point("P1")
        if slot is None:
            fault.pfn = NO_SLOT
            cached = self.kvm.config.mmio_caching and fault.gfn <= self.kvm.geometry.max_gfn
            return CONTINUE if cached else EMULATE
        if slot.flags & _SPECIAL:
            if slot.flags & KVM_MEMSLOT_INVALID:
                return RETRY
            if fault.write:
                return EMULATE
        region = slot.region
        index = fault.gfn - slot.origin
        fault.pfn = region.ptes[index] or self._fault_in(fault, region, index)
        if not fault.pfn:
            return INVALID
        fault.host_writable = self.is_host_writable(fault, slot)
        return CONTINUE

    def is_host_writable(self, fault: Fault, slot: Memslot) -> bool:  # noqa: ARG002 - a host may decide page by page
        """Whether the host's own mapping of the page may be written (the map_writable of
        kvm_faultin_pfn)."""
        return slot.host_writable

    def find_slot(self, fault: Fault) -> Memslot | None:
        """kvm_vcpu_gfn_to_memslot(), INVALID slots included."""
        return self.memslots.gfn_to_memslot(fault.as_id, fault.gfn, fault.srcu_reader)

    def take_seq(self, fault: Fault) -> None:
        """mmu_seq: before the host is asked for the page, so that whatever it takes back from here
        on is noticed."""
        fault.mmu_seq = self._seq.value

    def _fault_in(self, fault: Fault, region: Region, index: int) -> int:
        """The frame, brought in if need be; 0 when that would have to be waited for, and may not
        be."""
        if fault.nowait and not region.dead.value:
            return region.ptes[index]
        return self.host.fault_in(region, index)

    def is_page_fault_stale(self, root: RootPage, fault: Fault) -> bool:
        """is_page_fault_stale(): under mmu_lock - the root was invalidated, or the pfn or the
        policy may be out of date."""
        if fault.hold is None or not fault.hold.mode:
            self._mmu_lock.assert_held()
        if root.invalid.value:
            return True
        slot = fault.slot
        if slot is None:
            return False
        if self._retry is not None:
            stale = self._retry(fault.mmu_seq, slot.hva(fault.gfn))
        else:
            stale = self._seq.value != fault.mmu_seq or (
                self._in_progress.value > 0 and self._invalidation.in_range(slot.hva(fault.gfn))
            )
        return stale or (slot.region.max_level > 1 and self.is_policy_stale(fault))

    def is_policy_stale(self, fault: Fault) -> bool:
        """Whether the NX policy has changed since the fault began (the mend of R10): a root that
        was kept valid through the toggle, whether it is still exported or not, has no other way to
        tell. Small pages may always be executable."""
        return fault.nx_workaround != self.kvm.nx_huge_pages.value

    def map(self, root: RootPage, cache: PageCache, fault: Fault) -> RetPf:
        """kvm_tdp_mmu_map(): walk to the goal level under RCU, linking tables on the way, and
        install the leaf.

        The walk is the iterator's walk over [gfn, gfn + 1): it only ever steps down.
        """
        if root.invalid.value:
            warn_obsolete(self.kvm, root, fault)
        slot = fault.slot
        if slot is not None and slot.region.max_level > 1:
            self.hugepage_adjust(fault, slot)
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
                child = self.link_child(sp, spte, cache, fault, level)
                if child is None:
                    rcu.read_unlock(reader)
                    return RETRY
                sp = child
        index = (gfn >> leaf_shift) & mask
        old = sp.spt[index]
        while fault.goal_level > 1 and fault.nx_workaround and self._is_nx_disallowed(old):
            sp = self._disallowed_hugepage_adjust(fault, old)
            index = (gfn >> self._shifts[fault.goal_level]) & mask
            old = sp.spt[index]
        result = self.map_handle_target_level(sp, index, fault, old)
        rcu.read_unlock(reader)
        return result

    def map_handle_target_level(self, sp: ShadowPage, index: int, fault: Fault, old: int) -> RetPf:
        """tdp_mmu_map_handle_target_level(): build the leaf and install it by compare-exchange."""
        if old == REMOVED_SPTE and self.leaves_frozen_alone(fault):
            return RETRY
        if sp.level != fault.goal_level:
            warn_level(self.kvm, sp, fault)
            return RETRY
        if fault.pfn < 0:
            return self.map_mmio(sp, index, fault, old)
        new = self.make_leaf(fault, old)
        denied = fault.write and not new & SPTE_W
        if new == old:
            return EMULATE if denied else SPURIOUS
        if self._probe.point is not None:
            self._probe.point("P4")
        level = fault.goal_level
        gfn = fault.gfn if level == 1 else fault.gfn >> self._shifts[level] << self._shifts[level]
        if not self.writer.set_spte_atomic(sp, index, gfn, old, new):
            return RETRY
        if level > 1 and self.layout.is_table(old, level):
            self.huge.flush_replaced(gfn, level)
        return EMULATE if denied else FIXED

    def make_leaf(self, fault: Fault, old: int) -> int:  # noqa: ARG002 - kernels before 6.13 look at it
        """make_spte() with what stands there now."""
        return self.make_spte(fault)

    def make_spte(self, fault: Fault) -> int:
        """make_spte(): the leaf for this fault; writable as soon as the host and the slot allow
        it."""
        slot = fault.slot
        if slot is not None and slot.dirty_bitmap is not None and fault.host_writable:
            slot.mark_dirty(fault.gfn)
        if fault.goal_level == 1:
            return (
                self._leaf_writable if fault.host_writable else self._leaf_read_only
            ) | fault.pfn << PFN_SHIFT
        writable = fault.host_writable
        if slot is not None and slot.dirty_bitmap is not None and writable:
            warn_huge_logged(self.kvm, slot, fault)
        return self.layout.leaf(
            fault.pfn,
            fault.goal_level,
            writable=writable,
            host_writable=writable,
            executable=not fault.nx_workaround,
        )

    # MMIO.

    def map_mmio(self, sp: ShadowPage, index: int, fault: Fault, old: int) -> RetPf:
        """No slot covers the gfn: note that in an MMIO SPTE, and have user space emulate the
        access."""
        generation = self.memslots.active(fault.as_id).generation.value
        if self.is_in_flux(generation):
            return EMULATE
        new = self.make_mmio_spte(fault.gfn, generation)
        if new != old and not self.writer.set_spte_atomic(sp, index, fault.gfn, old, new):
            return RETRY
        return EMULATE

    def is_in_flux(self, generation: int) -> bool:
        """Nothing is cached while memslots are being updated (ddfd1730fd82). An entry made after a
        wrap's zap, and before the new generation is stored, would survive the wrap and match when
        its generation comes round again; and others may see a slot that this fault does not: an
        MMIO SPTE over their leaf would hide it from every later zap."""
        return bool(generation & GEN_UPDATE_IN_PROGRESS)

    def make_mmio_spte(self, gfn: int, generation: int) -> int:
        """make_mmio_spte(): without any hardware rights, so that an IOMMU cannot take it for a
        writable leaf (the mend of R18); a CPU's violation finds the mark as well as its
        misconfiguration would."""
        return self.layout.mmio(gfn, generation & self._gen_mask, self.mmio_rights())

    def mmio_rights(self) -> int:
        """The hardware rights of an MMIO SPTE."""
        return 0

    def get_mmio_spte(self, root: RootPage, gfn: int) -> int:
        """get_mmio_spte(): the entry at the end of a lockless walk. The caller holds SRCU for read,
        so that slots, and with them the generation, change once at most before the entry is
        judged."""
        rcu = self.kvm.rcu
        rcu.read_lock()
        spte = self.get_last_sptep(root, gfn)[2]
        rcu.read_unlock()
        return spte

    def check_mmio_spte(self, gfn: int, as_id: int, spte: int, vcpu: Vcpu) -> bool:
        """check_mmio_spte(): whether the access can be emulated at once, because no slot has come
        since the SPTE was made. The caller holds SRCU for read."""
        slots = self.memslots.active(as_id)
        generation = slots.generation.value
        honoured = self.is_current(self.layout.mmio_generation(spte), generation)
        if honoured and self._probe.mmio_honoured is not None:
            self._probe.mmio_honoured(vcpu, gfn, spte, slots)
        return honoured

    def is_current(self, made: int, generation: int) -> bool:
        """Whether an MMIO SPTE of generation `made` holds under `generation`; nothing holds while
        an update is under way."""
        return not generation & GEN_UPDATE_IN_PROGRESS and made == generation & self._gen_mask

    # Dirty logging.

    def mark_page_dirty(self, as_id: int, gfn: int) -> None:
        """mark_page_dirty(): SRCU is held for read."""
        slot = self.memslots.gfn_to_memslot(as_id, gfn)
        if slot is not None:
            slot.mark_dirty(gfn)

    # Huge pages.

    def hugepage_adjust(self, fault: Fault, slot: Memslot) -> None:
        """kvm_mmu_hugepage_adjust(): how large a leaf host, slot, dirty logging and the NX policy
        allow here."""
        fault.huge_page_disallowed = fault.fetch and fault.nx_workaround
        if slot.dirty_bitmap is not None:
            return
        fault.req_level = level = self.max_mapping_level(slot, fault.gfn)
        if level == PG_LEVEL_4K or fault.huge_page_disallowed:
            return
        fault.goal_level = level
        pages = self.kvm.geometry.pages(level)
        if (fault.gfn ^ fault.pfn) & (pages - 1):
            warn_offset(self.kvm, fault)
        fault.pfn &= -pages

    def max_mapping_level(self, slot: Memslot, gfn: int) -> int:
        """kvm_mmu_max_mapping_level(): no larger than the host's own mapping, and within the
        slot."""
        level = min(slot.region.levels[gfn - slot.origin] or PG_LEVEL_4K, self._max_level)
        while level > PG_LEVEL_4K and not slot.allows(gfn, level, self.kvm.geometry):
            level -= 1
        return level

    def _is_nx_disallowed(self, spte: int) -> bool:
        """Whether the entry points to a table that is there only because of the NX mitigation."""
        sp = self._tables.get(spte)
        return sp is not None and sp.nx_disallowed is not None and sp.nx_disallowed.value

    def _disallowed_hugepage_adjust(self, fault: Fault, spte: int) -> ShadowPage:
        """disallowed_hugepage_adjust(): go down one level instead of putting a huge page over small
        executable ones."""
        geometry = self.kvm.geometry
        level = fault.goal_level
        fault.goal_level = level - 1
        fault.pfn |= fault.gfn & (geometry.pages(level) - geometry.pages(level - 1))
        return self._tables[spte]

    # The lockless path.

    def fast_page_fault(self, root: RootPage, fault: Fault) -> RetPf | None:
        """fast_page_fault(): under RCU only; None when the slow path must decide."""
        rcu = self.kvm.rcu
        rcu.read_lock()
        result = self._fast_page_fault(root, fault)
        rcu.read_unlock()
        return result

    def _fast_page_fault(self, root: RootPage, fault: Fault) -> RetPf | None:
        for _ in range(4):
            sp, index, spte = self.get_last_sptep(root, fault.gfn)
            if not self.layout.is_leaf(spte, sp.level):
                return None
            if spte & (SPTE_W if fault.write else SPTE_X if fault.fetch else SPTE_R):
                return SPURIOUS
            new = self.fast_pf_new_spte(sp, spte, fault)
            if new is None or not new & (
                SPTE_W if fault.write else SPTE_X if fault.fetch else SPTE_R
            ):
                return None
            if self._probe.point is not None:
                self._probe.point("P18")
            if self.fast_pf_fix_direct_spte(sp, index, fault, spte, new):
                return FIXED
        return RETRY

    def fast_pf_new_spte(self, sp: ShadowPage, spte: int, fault: Fault) -> int | None:
        """What the entry could become without mmu_lock: rights given back that access tracking
        took, and W where the MMU allows it - but not on a huge leaf while dirty pages are logged,
        which would log the first page only (B62)."""
        new = (
            self.layout.restore_access_track(spte) if self.layout.is_access_tracked(spte) else spte
        )
        if fault.write and spte & MMU_WRITABLE:
            fault.slot = self.memslots.gfn_to_memslot(fault.as_id, fault.gfn, fault.srcu_reader)
            if not self.may_make_writable(sp, fault):
                return None
            new |= SPTE_W
        return new if new != spte else None

    def may_make_writable(self, sp: ShadowPage, fault: Fault) -> bool:
        """Whether the lockless path may give back W."""
        return fault.slot is not None and (
            sp.level == PG_LEVEL_4K or fault.slot.dirty_bitmap is None
        )

    def fast_pf_fix_direct_spte(
        self, sp: ShadowPage, index: int, fault: Fault, old: int, new: int
    ) -> bool:
        """fast_pf_fix_direct_spte(): compare-exchange on the exact old value; a write is then
        dirty."""
        fault.fixing = fault.gfn
        if sp.spt.cmpxchg(index, old, new) != old:
            fault.fixing = -1
            if self._probe.cmpxchg_lost is not None:
                self._probe.cmpxchg_lost(fault.gfn)
            return False
        if new & SPTE_W and not old & SPTE_W and fault.slot is not None:
            fault.slot.mark_dirty(fault.gfn)
        fault.fixing = -1
        if self._probe.fast_page_fault is not None:
            self._probe.fast_page_fault(fault.gfn, old, new)
        return True

    def get_last_sptep(self, root: RootPage, gfn: int) -> tuple[ShadowPage, int, int]:
        """kvm_tdp_mmu_fast_pf_get_last_sptep(): the lowest entry of a lockless walk, as (table,
        index, value)."""
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

    def link_child(
        self, sp: ShadowPage, old: int, cache: PageCache, fault: Fault, level: int
    ) -> ShadowPage | None:
        """tdp_mmu_link_sp(), or tdp_mmu_split_huge_page() where a huge leaf stands, with a page
        from the cache; None when another task froze or changed the entry first."""
        if old == REMOVED_SPTE and self.leaves_frozen_alone(fault):
            return None
        shift = self._shifts[level]
        index = (fault.gfn >> shift) & self._mask
        gfn = (fault.gfn >> shift) << shift
        child = cache.take()
        assert sp.root is not None
        child.place(sp.root, sp, index, gfn, level - 1)
        if fault.huge_page_disallowed:
            child.nx_disallowed = self.kvm.runtime.cell("nx_huge_page_disallowed", True)
        if self._probe.point is not None:
            self._probe.point("P4")
        if old & self._present:
            linked = self.huge.split_huge_page(sp, index, gfn, old, child, shared=True)
        else:
            linked = self.writer.link_sp(sp, index, gfn, old, child)
        if not linked:
            self.kvm.tables.discard(child)
            return None
        if fault.huge_page_disallowed and fault.req_level >= level:
            with self.kvm.tdp_mmu_pages_lock:
                self.kvm.possible_nx_huge_pages.track(child)
        return child

    def leaves_frozen_alone(self, fault: Fault) -> bool:
        """is_removed_spte(): somebody is busy with the entry, so the access has to fault again
        (B41)."""
        if self._probe.frozen_met is not None:
            self._probe.frozen_met(fault.gfn)
        return True
