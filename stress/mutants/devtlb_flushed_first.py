"""The device's own TLB is flushed before the IOTLB that fills it."""

from mmu.parts import WHOLE, VtdDomain
from stress.mutants.case import Case, Mutant


class DeviceFirst(VtdDomain):
    """The cache nearest to the device first."""

    def flush_all(self) -> None:
        """Both, in the wrong order."""
        self.flush_dev_iotlb(0, WHOLE)
        self._between()
        self.device.flush_iotlb(0, WHOLE, leaves_only=False)

    def flush_range(self, pfn: int, pages: int, ih: bool) -> None:
        """Both, in the wrong order."""
        mask = self.psi_mask(pfn, pages)
        self.flush_dev_iotlb(pfn >> mask << mask, 1 << mask)
        self._between()
        self.flush_iotlb(pfn, mask, ih)

    def _between(self) -> None:
        if self.kvm.probe.point is not None:
            self.kvm.probe.point("P16")


VARIANT = Mutant(
    name="devtlb-flushed-first",
    title="the device TLB is flushed before the IOTLB",
    parts=(DeviceFirst,),
    expects=("O1",),
    rule=(
        "the IOMMU may answer a translation request from its IOTLB, so that one is invalidated "
        "before the device TLB"
    ),
    origin="reference 1.8, VT-d specification 6.5.2.5; iommu_flush_iotlb_psi()",
    story=(
        "device: gfn G is in the IOTLB and in its own TLB",
        "memslot worker: zaps G, flushes the device TLB",
        "device: asks for G; the IOMMU answers from its IOTLB",
        "memslot worker: flushes the IOTLB, returns, releases the page",
        "device: DMA to G through its own TLB",
    ),
    confidence="V",
    tags=("export", "flush", "vtd"),
    controlled=Case("explore/delete-vs-devtlb"),
    threads=Case("BUSTED/devtlb-flushed-first"),
)
