"""What an IOMMU's and a device's caches still hold of a range that was invalidated."""

from __future__ import annotations

from collections.abc import Iterator

from mmu.export.device import Device
from mmu.kvm import Kvm
from mmu.memory.tlb import HardwareWalker, span_of, within
from mmu.paging.spte import ADDR_MASK, PFN_SHIFT
from mmu.paging.table import RootPage, ShadowPage

Kept = tuple[str, int, str]
"""A cache, a gfn, and what the cache has for it."""


def kept(kvm: Kvm, device: Device, root: RootPage, first: int, end: int) -> Iterator[Kept]:
    """Each translation and partial walk of the gfns [first, end) that one of the device's caches
    has, and the tables below `root` do not have any more."""
    walker = HardwareWalker(kvm)
    for name, cache in device.caches():
        for gfn, spte in list(cache.entries.items()):
            if first <= gfn < end and not _maps(kvm, walker.look(root, gfn), spte):
                yield name, gfn, _frame(spte)
        for key, huge in list(cache.huge.items()):
            start, last = span_of(key)
            shift = (last - start).bit_length() - 1
            for gfn in range(max(first, start), min(end, last)):
                spte = within(huge, gfn, shift)
                if not _maps(kvm, walker.look(root, gfn), spte):
                    yield name, gfn, f"{_frame(spte)}, by a huge leaf"
        for key, table in list(cache.tables.items()):
            start, last = span_of(key)
            gfn = max(first, start)
            if gfn < min(end, last) and not _leads_to(kvm, root, gfn, table):
                yield name, gfn, "a table that is not there any more"


def _maps(kvm: Kvm, now: int, cached: int) -> bool:
    return kvm.layout.is_present(now) and not (now ^ cached) & ADDR_MASK


def _frame(spte: int) -> str:
    return f"frame {(spte & ADDR_MASK) >> PFN_SHIFT:#x}"


def _leads_to(kvm: Kvm, root: RootPage, gfn: int, table: ShadowPage) -> bool:
    """Whether a walk for `gfn` comes by the table."""
    sp: ShadowPage | None = root
    for level in range(root.level, 1, -1):
        if sp is None or sp is table:
            break
        spte = sp.spt[kvm.geometry.index(gfn, level)]
        sp = kvm.tables.by_spte.get(kvm.layout.table(spte & ADDR_MASK))
    return sp is table
