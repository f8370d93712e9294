"""The VT-d driver's side of an exported root: how a range that KVM has flushed becomes commands for
the IOMMU (patch 22; drivers/iommu/intel/iommu.c of the RFC's base)."""

from __future__ import annotations

from typing import Final

from mmu.export.device import Device
from mmu.kvm import Kvm
from mmu.memory.tlb import WHOLE

PAGE_SHIFT: Final = 12
PAGE_MASK: Final = (1 << PAGE_SHIFT) - 1
EVERYTHING: Final = -1
"""A size in bytes that stands for the whole address space."""


class VtdDomain:
    """An IOMMU domain of type KVM with one device attached.

    Commands go through the invalidation queue one by one, and each is complete, accesses in flight
    included, before the next one is submitted.
    """

    STANDS_FOR: Final = (
        "drivers/iommu/intel/kvm.c of the series: kvm_domain_cache_invalidate(); "
        "drivers/iommu/intel/iommu.c: iommu_flush_iotlb_psi(), intel_flush_iotlb_all()"
    )

    MAX_ADDRESS_MASK = 18
    """The largest mask of a page-selective command that the hardware takes (MAMV)."""

    def __init__(self, kvm: Kvm, device: Device) -> None:
        self.kvm = kvm
        self.device = device
        self.refused = kvm.runtime.counter("vtd.refused")
        """Ranges that were not flushed because they are not made of whole pages."""

    def cache_invalidate(self, iova: int, size: int) -> None:
        """kvm_domain_cache_invalidate(): flush `size` bytes from `iova` on, everything with (0,
        -1). A range that is not made of whole pages is reported to the kernel log, and not
        flushed."""
        if iova == 0 and size == EVERYTHING:
            self.flush_all()
        elif (iova | size) & PAGE_MASK:
            self.refused.add(1)
        else:
            self.flush_range(iova >> PAGE_SHIFT, size >> PAGE_SHIFT, self.invalidation_hint())

    def invalidation_hint(self) -> bool:
        """What `ih` says of a range: whether no page-table page was taken out of it. KVM does not
        tell, so nothing may be claimed (the mend of R23)."""
        return False

    def flush_all(self) -> None:
        """intel_flush_iotlb_all(): the whole domain, then the device."""
        self.device.flush_iotlb(0, WHOLE, leaves_only=False)
        self.flush_dev_iotlb(0, WHOLE)

    def flush_range(self, pfn: int, pages: int, ih: bool) -> None:
        """iommu_flush_iotlb_psi(): the IOTLB first, because the device may ask for a translation
        between the two."""
        mask = self.psi_mask(pfn, pages)
        self.flush_iotlb(pfn, mask, ih)
        self.flush_dev_iotlb(pfn >> mask << mask, 1 << mask)

    def psi_mask(self, pfn: int, pages: int) -> int:
        """The low bits of a frame number that a page-selective command must ignore to cover the
        range: it flushes an aligned block of a power of two (B76)."""
        return (pfn ^ (pfn + pages - 1)).bit_length()

    def flush_iotlb(self, pfn: int, mask: int, ih: bool) -> None:
        """qi_flush_iotlb(): page-selective where the hardware can, else the whole domain."""
        if mask > self.MAX_ADDRESS_MASK:
            self.device.flush_iotlb(0, WHOLE, leaves_only=False)
        else:
            self.device.flush_iotlb(
                pfn >> mask << mask, 1 << mask, leaves_only=ih and self.passes_hint_on()
            )

    def passes_hint_on(self) -> bool:
        """Whether `ih` reaches the hardware. It is masked out of the address and overwritten until
        6b38a108eeb3 (6.19, and 6.18.y and 6.12.y from December 2025)."""
        return self.kvm.config.iommu_hint

    def flush_dev_iotlb(self, pfn: int, pages: int) -> None:
        """iommu_flush_dev_iotlb(): the device's own TLB, if it has one."""
        if self.device.devtlb is not None:
            if self.kvm.probe.point is not None:
                self.kvm.probe.point("P16")
            self.device.flush_devtlb(pfn, pages)
