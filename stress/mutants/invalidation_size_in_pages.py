"""An importer hands the IOMMU driver a size in pages where it expects bytes."""

from mmu.parts import WHOLE, KvmHwpt
from stress.mutants.case import Case, Mutant


class SizeInPages(KvmHwpt):
    """One of the two is shifted."""

    def invalidate(self, gfn: int, pages: int) -> None:
        """A range that is not made of whole pages, which the driver refuses to flush."""
        if pages == WHOLE:
            super().invalidate(gfn, pages)
        else:
            self.domain.cache_invalidate(gfn << 12, pages)


VARIANT = Mutant(
    name="invalidation-size-in-pages",
    title="an importer tells the driver pages where it expects bytes, and the driver refuses",
    parts=(SizeInPages,),
    expects=("O1",),
    rule="a flush that is refused is no flush: nobody looks at the driver's error message",
    origin="domain_flush_iotlb_psi() of patch 22; reference 1.8",
    story=(
        "device: gfn 1 is in the IOTLB",
        "host: an attribute changes: KVM zaps gfn 1 and tells the importer",
        "VT-d driver: the size is not a multiple of the page size: prints an error and returns",
        "device: DMA to gfn 1 through the IOTLB",
    ),
    confidence="V",
    tags=("export", "flush", "vtd"),
    controlled=Case("explore/attributes-vs-dma"),
    threads=Case("explore/attributes-vs-dma"),
)
