"""R23: a range flush tells the IOMMU that no page-table page was freed."""

from mmu.export.vtd import VtdDomain
from mmu.numbers.defects import titled
from mmu.variant import Variant


class LeavesOnly(VtdDomain):
    """domain_flush_iotlb_psi() as posted: ih=1 for every range."""

    def invalidation_hint(self) -> bool:
        """Only leaves have changed, whatever has."""
        return True


VARIANT = Variant(
    name="r23-range-flush-with-hint",
    title=titled("R23"),
    parts=(LeavesOnly,),
    expects=("O1", "O2"),
    rule=(
        "a flush that follows the removal of a table must drop the partial walks that led to it, "
        "before RCU frees it"
    ),
    origin="reference 1.11 R23, patch 22 (domain_flush_iotlb_psi()) and 6b38a108eeb3",
    story=(
        "device: DMA through a 4 KiB leaf; the IOMMU caches the walk to its table",
        "dirty logger: logging goes off; the table is replaced by nothing, its range is flushed "
        "with ih=1; RCU frees it",
        "device: the next DMA continues the walk in the freed table",
    ),
)
