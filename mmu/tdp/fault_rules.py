"""The kernel's own WARNs of the fault path."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmu.kvm import Kvm
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
