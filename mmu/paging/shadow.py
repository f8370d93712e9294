"""Shadow pages: the tables that KVM builds for a nested guest whose own page tables its hypervisor
keeps (nested EPT).

They are only counted: what matters here is that kvm_mmu_zap_all_fast() finds them obsolete, and may
let mmu_lock go while it zaps them.
"""

from __future__ import annotations

from mmu.runtime import Cell, Runtime


class ShadowPages:
    """`active_mmu_pages`: a FIFO of shadow pages, each with the generation it was made in. mmu_lock
    is held for write around every call."""

    def __init__(self, runtime: Runtime) -> None:
        self._generations: Cell[tuple[int, ...]] = runtime.cell("active_mmu_pages", ())

    def count(self) -> int:
        """The number of pages, obsolete ones included."""
        return len(self._generations.value)

    def fill(self, pages: int, generation: int) -> int:
        """Make pages until there are `pages` of this generation; returns how many were made."""
        known = self._generations.value
        missing = max(0, pages - known.count(generation))
        self._generations.value = (*known, *[generation] * missing)
        return missing

    def is_oldest_obsolete(self, generation: int) -> bool:
        """is_obsolete_sp() of the oldest page; false if there is none. No obsolete page comes after
        one that is not."""
        known = self._generations.value
        return bool(known) and known[0] != generation

    def zap_oldest(self) -> None:
        """kvm_mmu_prepare_zap_page() of the oldest page."""
        self._generations.value = self._generations.value[1:]
