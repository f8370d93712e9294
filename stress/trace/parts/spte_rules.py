"""Which changes of an SPTE no kernel makes, whatever came before."""

from __future__ import annotations

from typing import Final

from stress.trace.events import SpteChanged
from stress.trace.layouts import (
    ADDRESS,
    PRESENT,
    VENDORS,
    WRITABLE,
    is_frozen,
    is_leaf,
    is_table,
    span,
)
from stress.trace.tree import EMPTY, normal
from stress.trace.world import TracedWorld

GFN_IN_MMIO: Final = {"AMD": ADDRESS & ~(1 << 51), "Intel": (1 << 31) - 4096}
"""Where an MMIO SPTE keeps its gfn for certain."""


def why_illegal(world: TracedWorld, change: SpteChanged) -> tuple[str, str] | None:
    """Code and sentence for a change that no kernel makes, None for a legal one."""
    _, gfn, level, old, new = change
    why: tuple[str, str] | None = None
    if not 1 <= level <= 5:
        why = "bad-level", "there is no such level"
    elif gfn & span(level) - 1:
        why = "misaligned-gfn", "the gfn is not aligned to the level"
    elif old == new:
        why = "no-change", "the event reports a change that is none"
    elif is_leaf(new, level):
        why = _why_bad_leaf(world, change)
    elif is_table(old, level) and is_table(new, level) and (old ^ new) & ADDRESS:
        why = "table-changed", "an entry points to another table without having been cleared"
    return (
        why
        or _why_bad_value(world, new)
        or _why_bad_value(world, old)
        or _why_bad_mmio(world, change)
    )


def _why_bad_leaf(world: TracedWorld, change: SpteChanged) -> tuple[str, str] | None:
    """What is wrong with a leaf, if anything."""
    _, _, level, old, new = change
    if level > 3:
        return "huge-level", "no leaf may be that large"
    if (new & ADDRESS) >> 12 & span(level) - 1:
        return "misaligned-pfn", "the frame is not aligned to the level"
    if is_leaf(old, level) and (old ^ new) & ADDRESS:
        return (
            "pfn-changed",
            "a leaf becomes a leaf of another frame without having been zapped",
        )
    return _why_bad_rights(world, new)


def _why_bad_rights(world: TracedWorld, leaf: int) -> tuple[str, str] | None:
    """Writable needs MMU-writable, that needs host-writable. Where 7.x keeps these bits is not
    known here."""
    vendor = world.vendor
    if vendor is None or "7.2" in world.detector.kernels:
        return None
    if leaf & WRITABLE and not leaf & vendor.mmu_writable:
        return "writable", "the leaf is writable although the MMU does not allow writing"
    if leaf & vendor.mmu_writable and not leaf & vendor.host_writable:
        return (
            "mmu-writable",
            "the leaf is MMU-writable although the host does not allow writing",
        )
    return None


def _why_bad_value(world: TracedWorld, spte: int) -> tuple[str, str] | None:
    """A value that maps nothing must be one of those that the kernel writes."""
    if spte & PRESENT or is_frozen(spte) or normal(spte) == EMPTY:
        return None
    vendors = [world.vendor] if world.vendor else list(VENDORS.values())
    if any(vendor.is_mmio(spte) for vendor in vendors):
        return None
    return (
        "bad-value",
        f"{spte:#x} maps nothing, and is neither the non-present value, nor frozen, nor an "
        "MMIO SPTE",
    )


def _why_bad_mmio(world: TracedWorld, change: SpteChanged) -> tuple[str, str] | None:
    """An MMIO SPTE holds its own gfn; Intel's may hold the upper bits of it elsewhere
    (L1TF)."""
    vendor, new = world.vendor, change.new
    if vendor is None or not vendor.is_mmio(new):
        return None
    bits = GFN_IN_MMIO[vendor.name]
    if (new ^ change.gfn << 12) & bits:
        return "mmio-gfn", f"the MMIO SPTE is one for gfn {(new & bits) >> 12:#x}"
    return None
