"""Translation caches, and the remote flush that empties them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Protocol

from mmu.kvm import Kvm
from mmu.memory.requests import KVM_REQ_TLB_FLUSH, Requests
from mmu.paging.spte import (
    ADDR_MASK,
    PFN_SHIFT,
    SPTE_A,
    SPTE_D,
    SPTE_MMIO,
    SPTE_PS,
    SPTE_RWX,
    SPTE_W,
)
from mmu.paging.table import ShadowPage

WHOLE = -1
"""A page count that stands for the whole address space."""


_SHIFT_AT: Final = 58


def span_key(gfn: int, shift: int) -> int:
    """The key of the aligned block of 1 << `shift` frames around `gfn`."""
    return gfn >> shift | shift << _SHIFT_AT


def span_of(key: int) -> tuple[int, int]:
    """The gfns [first, end) that stand behind a key of `span_key`."""
    shift = key >> _SHIFT_AT
    first = (key & (1 << _SHIFT_AT) - 1) << shift
    return first, first + (1 << shift)


def within(huge: int, gfn: int, shift: int) -> int:
    """The word that a 4 KiB leaf for `gfn` would have if it mapped what the huge leaf maps, large
    bit aside."""
    return huge + ((gfn & (1 << shift) - 1) << PFN_SHIFT)


class TranslationCache:
    """A TLB with its paging-structure cache. Owned by one vCPU, by the physical CPU that vCPUs take
    turns on, or by a device's hardware under its transaction lock.

    `entries` maps a gfn to the leaf SPTE that was walked. `huge` has huge leaves and `tables` the
    tables that partial walks ended at, both by the block that they map (`span_key`).
    """

    STANDS_FOR: Final = "hardware: the TLB of a CPU, the IOTLB of an IOMMU"

    __slots__ = ("entries", "huge", "tables")

    def __init__(self) -> None:
        self.entries: dict[int, int] = {}
        self.huge: dict[int, int] = {}
        self.tables: dict[int, ShadowPage] = {}

    def flush(self) -> None:
        """Drop everything."""
        self.entries.clear()
        self.huge.clear()
        self.tables.clear()

    def flush_range(self, gfn: int, pages: int, leaves_only: bool = False) -> None:
        """Drop every translation of a page of the range, a huge leaf as a whole, and unless
        `leaves_only` the partial walks to them."""
        if pages == WHOLE:
            self.flush()
            return
        end = gfn + pages
        for key in [key for key in self.huge if self.drops_huge(key, gfn, end)]:
            del self.huge[key]
        if not leaves_only:
            for key in [key for key in self.tables if _overlap(key, gfn, end)]:
                del self.tables[key]
        if pages > len(self.entries):
            for cached in [cached for cached in self.entries if gfn <= cached < end]:
                del self.entries[cached]
        else:
            for cached in range(gfn, end):
                self.entries.pop(cached, None)

    def drops_huge(self, key: int, gfn: int, end: int) -> bool:
        """Whether a flush of [gfn, end) drops the huge leaf: if it maps any page of the range."""
        return _overlap(key, gfn, end)

    def find_huge(self, gfn: int, shifts: Iterable[int]) -> int:
        """The word for `gfn` by a cached huge leaf of one of the sizes, or 0."""
        if self.huge:
            for shift in shifts:
                huge = self.huge.get(span_key(gfn, shift))
                if huge is not None:
                    return within(huge, gfn, shift)
        return 0


def _overlap(key: int, gfn: int, end: int) -> bool:
    first, last = span_of(key)
    return max(first, gfn) < min(last, end)


class HardwareWalker:
    """What walks page tables without software: a CPU's or an IOMMU's page walker.

    It looks at the R, W and X bits, whatever KVM means by an entry (reference 1.11 R18), takes no
    lock and no RCU section, and caches last-level tables, and huge leaves if `keeps_huge`. A CPU's
    walker also sets accessed and dirty bits, atomically; `on_dirty(gfn, pfn, tick)` hears of every
    D bit it sets, `tick` being the dirty clock's time before it did.
    """

    def __init__(
        self,
        kvm: Kvm,
        on_dirty: Callable[[int, int, int], None] | None = None,
        *,
        keeps_huge: bool = False,
    ) -> None:
        self._kvm = kvm
        self._tables = kvm.tables
        self._max_gfn = kvm.geometry.max_gfn
        self._mask = kvm.geometry.mask
        shifts = kvm.geometry.shifts()
        self._table_shift = shifts[2] if len(shifts) > 2 else 0
        self._table_tag = span_key(0, self._table_shift)
        self._descent = tuple(reversed(shifts[2:]))
        self._clock = kvm.dirty_clock
        self._keeps_huge = keeps_huge
        self._on_dirty = on_dirty if kvm.layout.ad_bits else None

    def walk(
        self, cache: TranslationCache, root: ShadowPage | None, gfn: int, write: bool = False
    ) -> int:
        """The leaf's word for `gfn`, or 0: beyond the tables, without a root, or where an entry on
        the way is empty.

        Of a huge leaf it is the word that a 4 KiB leaf for `gfn` would have, large bit aside.
        """
        if gfn > self._max_gfn or root is None:
            return 0
        key = gfn >> self._table_shift | self._table_tag
        sp = cache.tables.get(key)
        if sp is None:
            sp = root
            for shift in self._descent:
                index = (gfn >> shift) & self._mask
                spte = sp.spt[index]
                if not spte & SPTE_RWX:
                    return spte
                if spte & SPTE_PS:
                    if self._on_dirty is not None:
                        spte = self._set_bits(sp, index, spte, gfn, shift, write)
                    if spte and self._keeps_huge:
                        cache.huge[span_key(gfn, shift)] = spte
                    return spte and within(spte, gfn, shift)
                sp = self._tables.at(spte & ADDR_MASK)
            # a pointer to no table is followed anew: an EPT violation drops what led to it
            if sp.root is not None:
                cache.tables[key] = sp
        index = gfn & self._mask
        spte = sp.spt[index]
        if self._on_dirty is not None and spte & SPTE_RWX and not spte & SPTE_MMIO:
            return self._set_bits(sp, index, spte, gfn, 0, write)
        return spte

    def look(self, root: ShadowPage | None, gfn: int) -> int:
        """What the tables say now, for a report: nothing is cached, and no bit is set."""
        return HardwareWalker(self._kvm).walk(TranslationCache(), root, gfn)

    def _set_bits(
        self, sp: ShadowPage, index: int, spte: int, gfn: int, shift: int, write: bool
    ) -> int:
        """Set A, and D for a write that the entry allows; gives up, without a translation, when the
        entry changes meanwhile."""
        wanted = SPTE_A | SPTE_D if write and spte & SPTE_W else SPTE_A
        if spte & wanted == wanted:
            return spte
        tick = self._clock.fetch_add(1) + 1 if wanted & ~spte & SPTE_D else 0
        if sp.spt.cmpxchg(index, spte, spte | wanted) != spte:
            if self._kvm.probe.cmpxchg_lost is not None:
                self._kvm.probe.cmpxchg_lost(gfn)
            return 0
        if tick and self._on_dirty is not None:
            pfn = (spte & ADDR_MASK) >> PFN_SHIFT
            self._on_dirty(gfn, pfn + (gfn & ((1 << shift) - 1)), tick)
        return spte | wanted


class EveryLevelWalker(HardwareWalker):
    """A page walker that caches the table of every level below the root, also on the way to a huge
    leaf, and follows the address of a cached table to whatever table is there by now (D14, D16)."""

    def walk(
        self, cache: TranslationCache, root: ShadowPage | None, gfn: int, write: bool = False
    ) -> int:
        """As `HardwareWalker.walk`, from the lowest cached table on."""
        if gfn > self._max_gfn or root is None:
            return 0
        sp, descent = self._lowest(cache, root, gfn)
        for shift in descent:
            index = (gfn >> shift) & self._mask
            spte = sp.spt[index]
            if not spte & SPTE_RWX:
                return spte
            if spte & SPTE_PS:
                return self._huge_leaf(cache, sp, spte, gfn, shift, write)
            sp = self._tables.at(spte & ADDR_MASK)
            if sp.root is not None:
                cache.tables[span_key(gfn, shift)] = sp
        spte = sp.spt[gfn & self._mask]
        if self._on_dirty is not None and spte & SPTE_RWX and not spte & SPTE_MMIO:
            return self._set_bits(sp, gfn & self._mask, spte, gfn, 0, write)
        return spte

    def _lowest(
        self, cache: TranslationCache, root: ShadowPage, gfn: int
    ) -> tuple[ShadowPage, tuple[int, ...]]:
        """The lowest table on the way to `gfn` that is cached, else the root, and the shifts of
        the entries from there down to a last-level table."""
        for steps in range(len(self._descent), 0, -1):
            sp = cache.tables.get(span_key(gfn, self._descent[steps - 1]))
            if sp is not None:
                return self._tables.now_at(sp), self._descent[steps:]
        return root, self._descent

    def _huge_leaf(
        self, cache: TranslationCache, sp: ShadowPage, spte: int, gfn: int, shift: int, write: bool
    ) -> int:
        """What `walk` returns where it meets a huge leaf, `spte` in table `sp`."""
        if self._on_dirty is not None:
            spte = self._set_bits(sp, (gfn >> shift) & self._mask, spte, gfn, shift, write)
        if spte and self._keeps_huge:
            cache.huge[span_key(gfn, shift)] = spte
        return spte and within(spte, gfn, shift)


def walker(
    kvm: Kvm,
    on_dirty: Callable[[int, int, int], None] | None = None,
    *,
    keeps_huge: bool = False,
) -> HardwareWalker:
    """The walker of a CPU or an IOMMU, which caches as much as the VM is configured for."""
    make = EveryLevelWalker if kvm.config.pcpus else HardwareWalker
    return make(kvm, on_dirty, keeps_huge=keeps_huge)


class FlushListener(Protocol):
    """Who is told of a flush after the vCPUs: the exported TDPs' importers."""

    def flush_notify(self, gfn: int, pages: int) -> None:
        """Invalidate `pages` pages from `gfn` on; `pages` is `WHOLE` for everything."""
        ...


class RemoteTlb:
    """kvm_flush_remote_tlbs*(): vCPUs first (waiting for those in guest mode), then the importers
    (reference 1.8)."""

    STANDS_FOR: Final = (
        "virt/kvm/kvm_main.c: kvm_flush_remote_tlbs(), kvm_flush_remote_tlbs_range()"
    )

    def __init__(self, kvm: Kvm, requests: Requests, listener: FlushListener | None) -> None:
        self.kvm = kvm
        self.requests = requests
        self.listener = listener

    def flush(self, reason: str) -> None:
        """kvm_flush_remote_tlbs()."""
        self._flush(reason, 0, WHOLE)

    def flush_range(self, reason: str, gfn: int, pages: int) -> None:
        """kvm_flush_remote_tlbs_range(): `pages` frames from `gfn` on."""
        self._flush(reason, gfn, pages)

    def _flush(self, reason: str, gfn: int, pages: int) -> None:
        kvm = self.kvm
        probe = kvm.probe
        if probe.flush_begin is not None:
            probe.flush_begin(reason, gfn, pages)
        start = kvm.runtime.now()
        kvm.stat.remote_tlb_flush_requests.add(1)
        if self.requests.make_all_cpus_request(KVM_REQ_TLB_FLUSH):
            kvm.stat.remote_tlb_flush.add(1)
        if probe.point is not None:
            probe.point("P15")
        self.notify_importers(gfn, pages)
        if probe.flush_end is not None:
            probe.flush_end(reason, gfn, pages, kvm.runtime.now() - start)

    def notify_importers(self, gfn: int, pages: int) -> None:
        """kvm_tdp_fd_flush_notify(): tell every importer (patch 42)."""
        if self.listener is not None:
            self.listener.flush_notify(gfn, pages)
