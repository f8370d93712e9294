"""A device that does DMA through a root that KVM has exported, and the translation caches on its
way: its own TLB (ATS), and the IOTLB of the IOMMU that walks the root for it.

The hardware is modelled as hardware: it looks at R and W bits of the words it finds, caches what it
walked, and an invalidation is complete only when accesses in flight have drained (reference 1.8,
1.11 R18, 2.16 P16).
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from mmu.kvm import Kvm
from mmu.memory.host import HostMemory, tag_of
from mmu.memory.tlb import WHOLE, TranslationCache, walker
from mmu.paging.spte import ADDR_MASK, PFN_SHIFT, SPTE_PS, SPTE_R, SPTE_W
from mmu.paging.table import RootPage
from mmu.runtime import Cell


class Dma(Enum):
    """How a DMA access ended."""

    DONE = "done"
    WRONG = "wrong"


class Device:
    """A DMA-capable device, its caches, and the walker in front of it.

    `hardware` makes each transaction (translate and access) one unit, which is how invalidation
    completion sees it: an invalidate waits for the transaction in flight and no later one can use
    what it removed. A device with `ats` asks the IOMMU for translations and keeps them in `devtlb`;
    the IOMMU may answer from its IOTLB, so that one has to be invalidated first.
    """

    STANDS_FOR: Final = "hardware: a device behind an IOMMU"

    def __init__(self, kvm: Kvm, host: HostMemory, name: str, ats: bool = False) -> None:
        self.kvm = kvm
        self.host = host
        self.name = name
        self.iotlb = kvm.parts[TranslationCache]()
        self.devtlb = kvm.parts[TranslationCache]() if ats else None
        self.root: Cell[RootPage | None] = kvm.runtime.cell(f"{name}.root", None)
        self.hardware = kvm.runtime.lock(f"{name} hardware")
        self.devtlb_hits = 0
        self.hits = 0
        self.walks = 0
        self._shifts = kvm.geometry.shifts()[2:]
        self._walker = walker(kvm, keeps_huge=True)

    def transact(self, gfn: int, write: bool) -> Dma | None:
        """One DMA access; None when there is no translation (an IO page fault)."""
        hardware = self.hardware
        hardware.acquire()
        if self.kvm.probe.dma_begin is not None:
            self.kvm.probe.dma_begin(self, gfn)
        try:
            spte = self._translate(gfn, write)
            if spte is None:
                return None
            if self.kvm.probe.point is not None:
                self.kvm.probe.point("P16")
            pfn = (spte & ADDR_MASK) >> PFN_SHIFT
            if self.host.access(pfn, tag_of(0, gfn), write):
                return Dma.DONE
            if self.kvm.probe.bad_translation is not None:
                self.kvm.probe.bad_translation(
                    self.name, gfn, pfn, write, self._walker.look(self.root.value, gfn)
                )
            return Dma.WRONG
        finally:
            if self.kvm.probe.dma_end is not None:
                self.kvm.probe.dma_end(self)
            hardware.release()

    # Invalidation.

    def flush_iotlb(self, gfn: int, pages: int, *, leaves_only: bool) -> None:
        """IOTLB invalidation with drain: returns when no access uses the removed translations any
        more. With `leaves_only` (ih=1) partial walks are kept."""
        hardware = self.hardware
        hardware.acquire()
        self.iotlb.flush_range(gfn, pages, leaves_only)
        hardware.release()

    def flush_devtlb(self, gfn: int, pages: int) -> None:
        """Device TLB invalidation: returns when the device has answered, and uses what it had to
        drop no more."""
        assert self.devtlb is not None
        hardware = self.hardware
        hardware.acquire()
        self.devtlb.flush_range(gfn, pages)
        hardware.release()

    def flush(self) -> None:
        """Everything, in the order that the IOMMU asks for."""
        self.flush_iotlb(0, WHOLE, leaves_only=False)
        if self.devtlb is not None:
            self.flush_devtlb(0, WHOLE)

    def attach(self, root: RootPage) -> None:
        """Program the context entry with a root; what was cached of another one is gone."""
        self.root.value = root
        self.flush()

    def detach(self) -> None:
        """Blocked: every access faults and is aborted from now on; the caches are empty."""
        self.root.value = None
        self.flush()

    def caches(self) -> tuple[tuple[str, TranslationCache], ...]:
        """Each cache with its name, such as "device0's IOTLB"."""
        own = () if self.devtlb is None else ((f"{self.name}'s device TLB", self.devtlb),)
        return ((f"{self.name}'s IOTLB", self.iotlb), *own)

    # Translation.

    def _translate(self, gfn: int, write: bool) -> int | None:
        needed = SPTE_W if write else SPTE_R
        devtlb = self.devtlb
        if devtlb is None:
            return self._translation_request(gfn, needed)
        spte = devtlb.entries.get(gfn)
        if spte is not None and spte & needed:
            self.devtlb_hits += 1
            return spte
        spte = self._translation_request(gfn, needed)
        if spte is not None:
            devtlb.entries[gfn] = spte
        return spte

    def _translation_request(self, gfn: int, needed: int) -> int | None:
        """What the IOMMU answers: from its IOTLB, or by a walk. None without the right."""
        iotlb = self.iotlb
        spte = iotlb.entries.get(gfn) or iotlb.find_huge(gfn, self._shifts)
        if spte & needed:
            self.hits += 1
            return spte
        self.walks += 1
        spte = self.walk(gfn)
        if not spte & needed:
            return None
        if not spte & SPTE_PS:
            iotlb.entries[gfn] = spte
        return spte

    def walk(self, gfn: int) -> int:
        """The hardware walk: the leaf's word, or 0."""
        return self._walker.walk(self.iotlb, self.root.value, gfn)
