"""Which changes of an SPTE no kernel makes, whatever came before."""

from __future__ import annotations

from typing import Final

from attrs import frozen

from stress.trace.events import SpteChanged
from stress.trace.layouts import (
    ADDRESS,
    LEVELS,
    PRESENT,
    VENDORS,
    WRITABLE,
    Vendor,
    is_frozen,
    is_leaf,
    is_table,
    span,
)
from stress.trace.tree import EMPTY, normal
from stress.trace.world import TracedWorld

GFN_IN_MMIO: Final = {"AMD": ADDRESS & ~(1 << 51), "Intel": (1 << 31) - 4096}
"""Where an MMIO SPTE keeps its gfn for certain."""


@frozen
class Illegal:
    """Why a change is one that no kernel makes."""

    code: str
    sentence: str
    before: str = ""
    """The layout from which on the rule is not known to hold, or ""."""


def why_illegal(world: TracedWorld, change: SpteChanged) -> Illegal | None:
    """What is wrong with a change, None for a legal one."""
    old, new = change.old, change.new
    if change.level not in LEVELS:
        return Illegal("bad-level", "there is no such level")
    if change.gfn & span(change.level) - 1:
        return Illegal("misaligned-gfn", "the gfn is not aligned to the level")
    if old == new:
        return Illegal("no-change", "the event reports a change that is none")
    if new & PRESENT:
        why = _why_bad_entry(world, change)
    else:
        why = _why_bad_value(world, new) or _why_bad_mmio(world, change)
    if why is None and not old & PRESENT:
        why = _why_bad_value(world, old)
    return why


def _why_bad_entry(world: TracedWorld, change: SpteChanged) -> Illegal | None:
    """What is wrong with a present entry, if anything."""
    _, _, level, old, new = change
    if not is_leaf(new, level):
        if is_table(old, level) and (old ^ new) & ADDRESS:
            return Illegal(
                "table-changed", "an entry points to another table without having been cleared"
            )
        return None
    if level > 3:
        return Illegal("huge-level", "no leaf may be that large")
    if (new & ADDRESS) >> 12 & span(level) - 1:
        return Illegal("misaligned-pfn", "the frame is not aligned to the level")
    if is_leaf(old, level) and (old ^ new) & ADDRESS:
        return Illegal(
            "pfn-changed", "a leaf becomes a leaf of another frame without having been zapped"
        )
    return _why_bad_rights(world.vendor, new)


def _why_bad_rights(vendor: Vendor | None, leaf: int) -> Illegal | None:
    """Writable needs MMU-writable, that needs host-writable."""
    if vendor is None:
        return None
    if leaf & WRITABLE and not leaf & vendor.mmu_writable:
        return Illegal("writable", "the leaf is writable although the MMU does not allow writing")
    if leaf & vendor.mmu_writable and not leaf & vendor.host_writable:
        return Illegal(
            "mmu-writable", "the leaf is MMU-writable although the host does not allow writing"
        )
    return None


def _why_bad_value(world: TracedWorld, spte: int) -> Illegal | None:
    """A value that maps nothing must be one of those that the kernel writes."""
    if is_frozen(spte) or normal(spte) == EMPTY:
        return None
    vendors = [world.vendor] if world.vendor else list(VENDORS.values())
    if any(vendor.is_mmio(spte) for vendor in vendors):
        return None
    return Illegal(
        "bad-value",
        f"{spte:#x} maps nothing, and is neither the non-present value, nor frozen, nor an "
        "MMIO SPTE",
    )


def _why_bad_mmio(world: TracedWorld, change: SpteChanged) -> Illegal | None:
    """An MMIO SPTE holds its own gfn, and replaces nothing that is present; Intel's may hold the
    upper bits of the gfn elsewhere (L1TF)."""
    vendor, new = world.vendor, change.new
    if vendor is None or not vendor.is_mmio(new):
        return None
    bits = GFN_IN_MMIO[vendor.name]
    if (new ^ change.gfn << 12) & bits:
        return Illegal("mmio-gfn", f"the MMIO SPTE is one for gfn {(new & bits) >> 12:#x}")
    if is_leaf(change.old, change.level):
        return Illegal(
            "mmio-over-leaf",
            "an MMIO SPTE replaced a present leaf, without a zap and a flush: the fault found no "
            "memslot, another vCPU has mapped the slot meanwhile, and a fault without a slot is "
            "never judged stale (is_page_fault_stale() asks for fault->slot)",
        )
    return None
