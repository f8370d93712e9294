"""R18: an MMIO SPTE that a CPU reports as a misconfiguration reads as a write-only leaf to an
IOMMU."""

from mmu.numbers.defects import titled
from mmu.paging.spte import MISCONFIG
from mmu.tdp.fault import FaultHandler
from mmu.variant import Variant


class Misconfigured(FaultHandler):
    """MMIO SPTEs as upstream makes them for EPT: write and execute without read."""

    def mmio_rights(self) -> int:
        """110b."""
        return MISCONFIG


VARIANT = Variant(
    name="r18-mmio-spte-walked",
    title=titled("R18"),
    parts=(Misconfigured,),
    expects=("O6",),
    rule="what is non-present to KVM must be non-present to every hardware that walks the table",
    origin="reference 1.11 R18 [M for the VT-d semantics]",
    story=(
        "vCPU: touches gfn g without a slot: an MMIO SPTE with W and X set in the exported root",
        "device: DMA write to g: W is set, the gfn's bits are taken for a frame",
    ),
)
