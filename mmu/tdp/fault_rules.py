"""The kernel's own WARNs of the fault path."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmu.kvm import Kvm
from mmu.memory.memslots import Memslot
from mmu.paging.table import RootPage, ShadowPage

if TYPE_CHECKING:
    from mmu.tdp.fault import Fault


def warn_obsolete(kvm: Kvm, root: RootPage, fault: Fault) -> None:
    """kvm_tdp_mmu_map() is about to map into an invalid root."""
    kvm.warn(
        "O12",
        "map-in-obsolete-root",
        f"BUG: a fault maps gfn {fault.gfn:#x} in obsolete {root.describe()}",
        "after mmu_lock is taken, a fault whose root was invalidated must be repeated",
        "is_page_fault_stale(), reference 2.8, B36 (a955cad84cda)",
        gfn=fault.gfn,
    )


def warn_level(kvm: Kvm, sp: ShadowPage, fault: Fault) -> None:
    """tdp_mmu_map_handle_target_level() is about to install a leaf at another level than the
    fault's goal."""
    kvm.warn(
        "O7",
        "leaf-at-wrong-level",
        f"BUG: a fault maps gfn {fault.gfn:#x} at level {sp.level}, although its goal is level "
        f"{fault.goal_level}",
        "a leaf is installed at the fault's goal level only: a walk that ends above it has lost a "
        "race, and the fault is retried",
        "tdp_mmu_map_handle_target_level() WARN_ON_ONCE(sp->role.level != goal_level); reference "
        "2.8, B42",
        subject=str(sp.level),
        gfn=fault.gfn,
    )


def warn_offset(kvm: Kvm, fault: Fault) -> None:
    """kvm_mmu_hugepage_adjust() has chosen a level at which gfn and pfn have different offsets."""
    kvm.warn(
        "O7",
        "huge-offset",
        f"BUG: gfn {fault.gfn:#x} and frame {fault.pfn:#x} have different offsets in a page of "
        f"level {fault.goal_level}",
        "a huge leaf maps gfns and frames one to one: both have the same offset in it",
        "kvm_mmu_hugepage_adjust() VM_WARN_ON_ONCE((gfn & mask) != (pfn & mask))",
        subject=str(fault.goal_level),
        gfn=fault.gfn,
    )


def warn_huge_logged(kvm: Kvm, slot: Memslot, fault: Fault) -> None:
    """make_spte() makes a writable huge leaf of a slot that logs dirty pages."""
    kvm.warn(
        "O8",
        "huge-leaf-while-logging",
        f"BUG: a fault at gfn {fault.gfn:#x} makes a writable leaf of level {fault.goal_level} of "
        f"{slot.describe()}, which logs dirty pages",
        "while a slot logs, its writable leaves are 4 KiB large: a huge one would log its first "
        "write only",
        "make_spte() WARN_ON_ONCE(level > PG_LEVEL_4K), kvm_mmu_hugepage_adjust(); reference 2.11",
        subject=str(fault.goal_level),
        gfn=fault.gfn,
    )


def warn_cache_empty(kvm: Kvm) -> None:
    """kvm_mmu_memory_cache_alloc() finds an empty cache, and allocates without sleeping."""
    kvm.warn(
        "O5",
        "cache-empty",
        "WARNING: a page table is taken from an empty cache under mmu_lock",
        "caches are filled before a lock is taken, with pages enough for one walk",
        "kvm_mmu_memory_cache_alloc() WARN_ON(!mc->nobjs), mmu_topup_memory_caches()",
        subject="cache",
    )


def warn_without_root(kvm: Kvm, gfn: int) -> None:
    """kvm_mmu_page_fault() is called by a vCPU that has no root loaded."""
    kvm.warn(
        "O12",
        "fault-without-root",
        f"WARNING: a page fault at gfn {gfn:#x} is handled by a vCPU without a root",
        "a vCPU enters the guest with a root loaded, and drops it only for requests",
        "kvm_mmu_page_fault() WARN_ON_ONCE(!VALID_PAGE(root.hpa)), kvm_mmu_reload()",
        subject="root",
        gfn=gfn,
    )


def warn_invalid(kvm: Kvm, gfn: int) -> None:
    """kvm_mmu_page_fault() has got RET_PF_INVALID of the fault handler."""
    kvm.warn(
        "O10",
        "fault-invalid",
        f"BUG: the page fault at gfn {gfn:#x} was neither fixed, nor retried, nor emulated",
        "the fault handler decides: an exit that changes nothing would come again for ever",
        "kvm_mmu_page_fault() KVM_BUG_ON(r == RET_PF_INVALID); reference 2.8",
        subject="fault",
        gfn=gfn,
    )
